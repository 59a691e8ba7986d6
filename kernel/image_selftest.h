/*
 * The image formats in the kernel itself: with selftest=image every image of the store whose name ends in a format's is opened as a disk
 * over the store's memory, read through the request engine, and its CRC-32C logged; then one is made in RAM, written, checked and read.
 */
#pragma once

void image_selftest(void);      /* thread context */
