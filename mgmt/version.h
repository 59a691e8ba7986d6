#pragma once
#define JOIST_VERSION "0.1"
