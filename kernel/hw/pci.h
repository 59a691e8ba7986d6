/*
 * PCI configuration space: PCI Local Bus Specification 3.0 chapter 6 (header, BARs, MSI, MSI-X), PCI Code and ID Assignment 1.11 (class codes),
 * PCI Express Base Specification 3.0 section 7.2.2 (ECAM).
 */
#pragma once
#include "kernel/lib/base.h"

/* Address port pair (configuration mechanism 1). */
#define PCI_CONFIG_ADDRESS      0xcf8
#define   PCI_CFA_ENABLE        BIT(31)
#define PCI_CONFIG_DATA         0xcfc

/* ECAM: base + (bus << 20 | device << 15 | function << 12 | register). */
#define PCI_ECAM_BUS_SHIFT      20
#define PCI_ECAM_DEVFN_SHIFT    12
#define PCI_DEVFN(dev, fn)      ((uint8_t)((dev) << 3 | (fn)))
#define PCI_DEV(devfn)          ((devfn) >> 3)
#define PCI_FN(devfn)           ((devfn) & 7)

/* Header, all types. */
#define PCI_VENDOR_ID           0x00    /* FFFFh: no function here */
#define PCI_DEVICE_ID           0x02
#define PCI_COMMAND             0x04
#define   PCI_CMD_IO            BIT(0)
#define   PCI_CMD_MEMORY        BIT(1)
#define   PCI_CMD_MASTER        BIT(2)
#define   PCI_CMD_PARITY        BIT(6)
#define   PCI_CMD_SERR          BIT(8)
#define   PCI_CMD_INTX_DISABLE  BIT(10)
#define PCI_STATUS              0x06
#define   PCI_STS_INTX          BIT(3)
#define   PCI_STS_CAPS          BIT(4)
#define   PCI_STS_ERRORS        0xf900  /* write 1 to clear: parity, aborts, SERR */
#define PCI_REVISION            0x08
#define PCI_CLASS_PROG          0x09    /* 24 bits: prog-if, subclass, class */
#define PCI_CACHE_LINE          0x0c
#define PCI_LATENCY             0x0d
#define PCI_HEADER_TYPE         0x0e
#define   PCI_HDR_TYPE_MASK     0x7f    /* 0 device, 1 PCI-PCI bridge, 2 CardBus */
#define   PCI_HDR_MULTI         0x80
#define PCI_BIST                0x0f

/* Type 0. */
#define PCI_BAR(n)              (0x10 + 4 * (n))
#define   PCI_BAR_IO            BIT(0)
#define   PCI_BAR_64            BIT(2)
#define   PCI_BAR_PREFETCH      BIT(3)
#define   PCI_BAR_IO_MASK       0xfffffffcu
#define   PCI_BAR_MEM_MASK      0xfffffff0u
#define PCI_SUBSYS_VENDOR       0x2c
#define PCI_SUBSYS_ID           0x2e
#define PCI_ROM                 0x30
#define   PCI_ROM_ENABLE        BIT(0)
#define PCI_CAP_PTR             0x34
#define PCI_INT_LINE            0x3c
#define PCI_INT_PIN             0x3d    /* 0 none, 1 INTA … 4 INTD */

/* Type 1. */
#define PCI_BR_PRIMARY          0x18
#define PCI_BR_SECONDARY        0x19
#define PCI_BR_SUBORDINATE      0x1a

/* Capabilities: id, offset of the next (bits 7:2). */
#define PCI_CAP_ID_PM           0x01
#define PCI_CAP_ID_MSI          0x05
#define PCI_CAP_ID_VENDOR       0x09
#define PCI_CAP_ID_EXP          0x10
#define PCI_CAP_ID_MSIX         0x11
#define PCI_CAP_ID_AF           0x13

/* MSI, offsets from the capability. */
#define PCI_MSI_CTRL            0x02
#define   PCI_MSI_ENABLE        BIT(0)
#define   PCI_MSI_MMC_SHIFT     1       /* log2 of vectors wanted, bits 3:1 */
#define   PCI_MSI_MME_SHIFT     4       /* log2 of vectors given, bits 6:4 */
#define   PCI_MSI_64BIT         BIT(7)
#define   PCI_MSI_MASKBITS      BIT(8)
#define PCI_MSI_ADDR_LO         0x04
#define PCI_MSI_ADDR_HI         0x08    /* if 64BIT */
#define PCI_MSI_DATA_32         0x08
#define PCI_MSI_DATA_64         0x0c
#define PCI_MSI_MASK_32         0x0c
#define PCI_MSI_MASK_64         0x10
#define PCI_MSI_PENDING_64      0x14

/* MSI-X, offsets from the capability. */
#define PCI_MSIX_CTRL           0x02
#define   PCI_MSIX_SIZE_MASK    0x07ff  /* entries - 1 */
#define   PCI_MSIX_MASK_ALL     BIT(14)
#define   PCI_MSIX_ENABLE       BIT(15)
#define PCI_MSIX_TABLE          0x04    /* bits 2:0 BAR, the rest offset */
#define PCI_MSIX_PBA            0x08
#define   PCI_MSIX_BIR_MASK     0x7
#define PCI_MSIX_CAP_LEN        12
struct pci_msix_entry { uint32_t addr_lo, addr_hi, data, ctrl; };
#define   PCI_MSIX_ENTRY_MASKED BIT(0)
_Static_assert(sizeof(struct pci_msix_entry) == 16, "MSI-X table entry");

/* Class codes used here: class << 16 | subclass << 8 | prog-if. */
#define PCI_CLASS_IDE           0x0101
#define PCI_CLASS_SATA_AHCI     0x010601
#define PCI_CLASS_NVME          0x010802
#define PCI_CLASS_SCSI_OTHER    0x010000
#define PCI_CLASS_ETHERNET      0x020000
#define PCI_CLASS_HOST_BRIDGE   0x060000
#define PCI_CLASS_ISA_BRIDGE    0x060100
#define PCI_CLASS_PCI_BRIDGE    0x060400
#define PCI_CLASS_COMM_OTHER    0x078000
#define PCI_CLASS_SYSTEM_OTHER  0x088000
#define PCI_CLASS_OTHER         0xff0000

/* Intel 3 Series Express Chipset (82G33/Q35) datasheet, host bridge D0:F0. */
#define Q35_VENDOR              0x8086
#define Q35_MCH_DEVICE          0x29c0
#define Q35_PCIEXBAR            0x60    /* 64 bits */
#define   Q35_PCIEXBAR_ENABLE   BIT(0)
#define   Q35_PCIEXBAR_256M     (0u << 1)

/* Intel ICH9 datasheet, LPC bridge D31:F0. */
#define ICH9_LPC_DEVICE         0x2918
#define ICH9_PMBASE             0x40
#define   ICH9_PMBASE_IO        BIT(0)
#define ICH9_ACPI_CTRL          0x44
#define   ICH9_ACPI_EN          BIT(7)
#define ICH9_PIRQ_A             0x60    /* PIRQA-D at 60h-63h, PIRQE-H at 68h-6Bh */
#define ICH9_PIRQ_E             0x68
#define   ICH9_PIRQ_OFF         BIT(7)  /* not routed to the 8259 */
#define   ICH9_PIRQ_IRQ_MASK    0x0f
