/* ACPI tables.  ACPI Specification 6.4; IA-PC HPET Specification 1.0a; PCI Firmware Specification 3.3 (MCFG); Microsoft SPCR; Intel VT-d (DMAR), AMD IOMMU (IVRS). */
#pragma once
#include "kernel/lib/base.h"

struct acpi_rsdp {
    char signature[8];          /* "RSD PTR " */
    uint8_t checksum;           /* of the first 20 bytes */
    char oem_id[6];
    uint8_t revision;           /* 0: only the first 20 bytes exist */
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t ext_checksum;       /* of length bytes */
    uint8_t reserved[3];
} __packed;
_Static_assert(sizeof(struct acpi_rsdp) == 36, "ACPI 6.4, 5.2.5.3");

struct acpi_header {
    char signature[4];
    uint32_t length;            /* of the whole table */
    uint8_t revision, checksum;
    char oem_id[6], oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __packed;
_Static_assert(sizeof(struct acpi_header) == 36, "ACPI 6.4, 5.2.6");

struct acpi_gas { uint8_t space, bits, offset, access; uint64_t address; } __packed;
_Static_assert(sizeof(struct acpi_gas) == 12, "ACPI 6.4, 5.2.3.2");
enum { ACPI_SPACE_MEMORY = 0, ACPI_SPACE_IO = 1, ACPI_SPACE_PCI = 2 };

struct acpi_fadt {
    struct acpi_header h;       /* "FACP" */
    uint32_t facs, dsdt;
    uint8_t reserved0, pm_profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base, cst_cnt;
    uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    struct acpi_gas reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor;
    uint64_t x_facs, x_dsdt;
    struct acpi_gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0, x_gpe1;
    struct acpi_gas sleep_control, sleep_status;
    uint64_t hypervisor_vendor;
} __packed;
_Static_assert(offsetof(struct acpi_fadt, flags) == 112 && offsetof(struct acpi_fadt, reset_reg) == 116, "ACPI 6.4, 5.2.9");
_Static_assert(offsetof(struct acpi_fadt, x_dsdt) == 140 && sizeof(struct acpi_fadt) == 276, "ACPI 6.4, 5.2.9");
#define FADT_BOOT_LEGACY_DEVICES BIT(0)
#define FADT_BOOT_8042      BIT(1)
#define FADT_BOOT_NO_VGA    BIT(2)
#define FADT_BOOT_NO_MSI    BIT(3)
#define FADT_BOOT_NO_CMOS_RTC BIT(5)
#define FADT_WBINVD         BIT(0)
#define FADT_PROC_C1        BIT(2)
#define FADT_PWR_BUTTON     BIT(4)      /* set: no fixed-feature power button */
#define FADT_SLP_BUTTON     BIT(5)
#define FADT_TMR_VAL_EXT    BIT(8)      /* PM timer has 32 bits, else 24 */
#define FADT_RESET_REG_SUP  BIT(10)
#define FADT_APIC_PHYSICAL  BIT(19)
#define FADT_HW_REDUCED     BIT(20)
#define FADT_LOW_POWER_S0   BIT(21)
/* PM1 control and event registers. */
#define PM1_CNT_SCI_EN      BIT(0)
#define PM1_CNT_SLP_TYP_SHIFT 10
#define PM1_CNT_SLP_TYP     BITS(12, 10)
#define PM1_CNT_SLP_EN      BIT(13)
#define PM1_STS_TMR         BIT(0)
#define PM1_STS_GBL         BIT(5)
#define PM1_STS_PWRBTN      BIT(8)
#define PM1_STS_SLPBTN      BIT(9)
#define PM1_STS_RTC         BIT(10)
#define PM1_STS_WAK         BIT(15)
#define PM1_EN_PWRBTN       BIT(8)
/* Hardware-reduced sleep control register. */
#define SLEEP_CNT_SLP_TYP_SHIFT 2
#define SLEEP_CNT_SLP_EN    BIT(5)
#define PM_TIMER_HZ         3579545u

struct acpi_madt { struct acpi_header h; uint32_t lapic_base, flags; } __packed;      /* "APIC" */
#define MADT_PCAT_COMPAT    BIT(0)      /* there are 8259s too */
struct acpi_subtable { uint8_t type, length; } __packed;
enum madt_type {
    MADT_LAPIC = 0, MADT_IOAPIC = 1, MADT_OVERRIDE = 2, MADT_NMI_SOURCE = 3, MADT_LAPIC_NMI = 4, MADT_LAPIC_BASE = 5, MADT_X2APIC = 9, MADT_X2APIC_NMI = 10,
    MADT_WAKEUP = 16,
};
struct madt_lapic { struct acpi_subtable s; uint8_t uid, apic_id; uint32_t flags; } __packed;
#define MADT_CPU_ENABLED    BIT(0)
#define MADT_CPU_ONLINE_CAPABLE BIT(1)
struct madt_ioapic { struct acpi_subtable s; uint8_t id, reserved; uint32_t address, gsi_base; } __packed;
struct madt_override { struct acpi_subtable s; uint8_t bus, source; uint32_t gsi; uint16_t flags; } __packed;
struct madt_nmi_source { struct acpi_subtable s; uint16_t flags; uint32_t gsi; } __packed;
struct madt_lapic_nmi { struct acpi_subtable s; uint8_t uid; uint16_t flags; uint8_t lint; } __packed;       /* uid ffh: all */
struct madt_lapic_base { struct acpi_subtable s; uint16_t reserved; uint64_t address; } __packed;
struct madt_x2apic { struct acpi_subtable s; uint16_t reserved; uint32_t x2apic_id, flags, uid; } __packed;
struct madt_x2apic_nmi { struct acpi_subtable s; uint16_t flags; uint32_t uid; uint8_t lint, reserved[3]; } __packed;
_Static_assert(sizeof(struct madt_lapic) == 8 && sizeof(struct madt_ioapic) == 12 && sizeof(struct madt_override) == 10, "ACPI 6.4, 5.2.12");
_Static_assert(sizeof(struct madt_lapic_nmi) == 6 && sizeof(struct madt_lapic_base) == 12 && sizeof(struct madt_x2apic) == 16, "ACPI 6.4, 5.2.12");
_Static_assert(sizeof(struct madt_x2apic_nmi) == 12 && sizeof(struct madt_nmi_source) == 8, "ACPI 6.4, 5.2.12");
/* MPS INTI flags of overrides and NMI entries. */
#define INTI_POLARITY       BITS(1, 0)
#define INTI_ACTIVE_HIGH    1
#define INTI_ACTIVE_LOW     3
#define INTI_TRIGGER        BITS(3, 2)
#define INTI_EDGE           (1 << 2)
#define INTI_LEVEL          (3 << 2)

struct acpi_hpet { struct acpi_header h; uint32_t block_id; struct acpi_gas base; uint8_t number; uint16_t min_tick; uint8_t flags; } __packed;
_Static_assert(sizeof(struct acpi_hpet) == 56, "HPET 1.0a, 3.2.4");

struct acpi_mcfg { struct acpi_header h; uint64_t reserved; } __packed;
struct mcfg_entry { uint64_t base; uint16_t segment; uint8_t bus_first, bus_last; uint32_t reserved; } __packed;
_Static_assert(sizeof(struct acpi_mcfg) == 44 && sizeof(struct mcfg_entry) == 16, "PCI Firmware 3.3, 4.1.2");

struct acpi_spcr {
    struct acpi_header h;
    uint8_t type, reserved0[3];
    struct acpi_gas base;
    uint8_t interrupt_type, irq;
    uint32_t gsi;
    uint8_t baud, parity, stop_bits, flow, terminal, language;
    uint16_t pci_device, pci_vendor;
    uint8_t pci_bus, pci_dev, pci_fn;
    uint32_t pci_flags;
    uint8_t pci_segment;
    uint32_t uart_clock;
} __packed;
_Static_assert(sizeof(struct acpi_spcr) == 80, "SPCR revision 2");
enum { SPCR_16550 = 0, SPCR_16450 = 1, SPCR_16550_GAS = 0x12 };
