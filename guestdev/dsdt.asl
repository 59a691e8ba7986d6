/*
 * What the ACPI namespace of the virtual PC says.  ACPI Specification 6.4.
 * The four-letter names of the first group are patched in the compiled table by acpi_tables.c; their values here only fix the width of the constant.
 */
DefinitionBlock ("dsdt.aml", "DSDT", 2, "JOIST ", "JOISTPC ", 1)
{
    Name (M64B, 0x1111111111111111)     // 64-bit PCI window: base and length, 0 = none
    Name (M64L, 0x2222222222222222)
    Name (HPEN, 0x33333333)             // _STA of the HPET and of the PS/2 controller
    Name (KBEN, 0x44444444)

    Name (\_S5, Package () { 7, 7, 0, 0 })          // SLP_TYP of the ICH9

    Name (PICM, 0)                      // 0: 8259, 1: APIC
    Method (\_PIC, 1) { PICM = Arg0 }

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0)

            Name (CRES, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0x0000, 0x0000, 0, 0x0001)
                IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0CF7, 0, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite, 0, 0x000A0000, 0x000BFFFF, 0, 0x00020000)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, 0, 0xC0000000, 0xFEBFFFFF, 0, 0x3EC00000)
            })
            Name (CR64, ResourceTemplate ()
            {
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite, 0, 0, 0, 0, 0, , , PW64)
            })
            Method (_CRS, 0, Serialized)
            {
                If (M64L == 0) { Return (CRES) }
                CreateQWordField (CR64, ^PW64._MIN, MINA)
                CreateQWordField (CR64, ^PW64._MAX, MAXA)
                CreateQWordField (CR64, ^PW64._LEN, LENA)
                MINA = M64B
                LENA = M64L
                MAXA = M64B + M64L - 1
                Return (ConcatenateResTemplate (CRES, CR64))
            }

            /* There are no native PCIe features to hand over: all control bits denied. */
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, 8, CTRL)
                CTRL = 0
                Return (Arg3)
            }

            /* Device d, pin p is PIRQ (d + p) mod 8 (intx_pirq() in pci.c): GSI 16 to 23, or what the router says. */
            Method (PRTA, 0, Serialized)
            {
                Local0 = Package (128) {}
                Local1 = 0
                While (Local1 < 128)
                {
                    Local2 = Package (4) { 0, 0, 0, 0 }
                    Local2 [0] = ((Local1 >> 2) << 16) | 0xFFFF
                    Local2 [1] = Local1 & 3
                    Local2 [3] = 16 + (((Local1 >> 2) + (Local1 & 3)) & 7)
                    Local0 [Local1] = Local2
                    Local1++
                }
                Return (Local0)
            }
            Name (PRTP, Package (128)
            {
                Package () { 0x0000FFFF, 0, LNKA, 0 }, Package () { 0x0000FFFF, 1, LNKB, 0 }, Package () { 0x0000FFFF, 2, LNKC, 0 }, Package () { 0x0000FFFF, 3, LNKD, 0 },
                Package () { 0x0001FFFF, 0, LNKB, 0 }, Package () { 0x0001FFFF, 1, LNKC, 0 }, Package () { 0x0001FFFF, 2, LNKD, 0 }, Package () { 0x0001FFFF, 3, LNKE, 0 },
                Package () { 0x0002FFFF, 0, LNKC, 0 }, Package () { 0x0002FFFF, 1, LNKD, 0 }, Package () { 0x0002FFFF, 2, LNKE, 0 }, Package () { 0x0002FFFF, 3, LNKF, 0 },
                Package () { 0x0003FFFF, 0, LNKD, 0 }, Package () { 0x0003FFFF, 1, LNKE, 0 }, Package () { 0x0003FFFF, 2, LNKF, 0 }, Package () { 0x0003FFFF, 3, LNKG, 0 },
                Package () { 0x0004FFFF, 0, LNKE, 0 }, Package () { 0x0004FFFF, 1, LNKF, 0 }, Package () { 0x0004FFFF, 2, LNKG, 0 }, Package () { 0x0004FFFF, 3, LNKH, 0 },
                Package () { 0x0005FFFF, 0, LNKF, 0 }, Package () { 0x0005FFFF, 1, LNKG, 0 }, Package () { 0x0005FFFF, 2, LNKH, 0 }, Package () { 0x0005FFFF, 3, LNKA, 0 },
                Package () { 0x0006FFFF, 0, LNKG, 0 }, Package () { 0x0006FFFF, 1, LNKH, 0 }, Package () { 0x0006FFFF, 2, LNKA, 0 }, Package () { 0x0006FFFF, 3, LNKB, 0 },
                Package () { 0x0007FFFF, 0, LNKH, 0 }, Package () { 0x0007FFFF, 1, LNKA, 0 }, Package () { 0x0007FFFF, 2, LNKB, 0 }, Package () { 0x0007FFFF, 3, LNKC, 0 },
                Package () { 0x0008FFFF, 0, LNKA, 0 }, Package () { 0x0008FFFF, 1, LNKB, 0 }, Package () { 0x0008FFFF, 2, LNKC, 0 }, Package () { 0x0008FFFF, 3, LNKD, 0 },
                Package () { 0x0009FFFF, 0, LNKB, 0 }, Package () { 0x0009FFFF, 1, LNKC, 0 }, Package () { 0x0009FFFF, 2, LNKD, 0 }, Package () { 0x0009FFFF, 3, LNKE, 0 },
                Package () { 0x000AFFFF, 0, LNKC, 0 }, Package () { 0x000AFFFF, 1, LNKD, 0 }, Package () { 0x000AFFFF, 2, LNKE, 0 }, Package () { 0x000AFFFF, 3, LNKF, 0 },
                Package () { 0x000BFFFF, 0, LNKD, 0 }, Package () { 0x000BFFFF, 1, LNKE, 0 }, Package () { 0x000BFFFF, 2, LNKF, 0 }, Package () { 0x000BFFFF, 3, LNKG, 0 },
                Package () { 0x000CFFFF, 0, LNKE, 0 }, Package () { 0x000CFFFF, 1, LNKF, 0 }, Package () { 0x000CFFFF, 2, LNKG, 0 }, Package () { 0x000CFFFF, 3, LNKH, 0 },
                Package () { 0x000DFFFF, 0, LNKF, 0 }, Package () { 0x000DFFFF, 1, LNKG, 0 }, Package () { 0x000DFFFF, 2, LNKH, 0 }, Package () { 0x000DFFFF, 3, LNKA, 0 },
                Package () { 0x000EFFFF, 0, LNKG, 0 }, Package () { 0x000EFFFF, 1, LNKH, 0 }, Package () { 0x000EFFFF, 2, LNKA, 0 }, Package () { 0x000EFFFF, 3, LNKB, 0 },
                Package () { 0x000FFFFF, 0, LNKH, 0 }, Package () { 0x000FFFFF, 1, LNKA, 0 }, Package () { 0x000FFFFF, 2, LNKB, 0 }, Package () { 0x000FFFFF, 3, LNKC, 0 },
                Package () { 0x0010FFFF, 0, LNKA, 0 }, Package () { 0x0010FFFF, 1, LNKB, 0 }, Package () { 0x0010FFFF, 2, LNKC, 0 }, Package () { 0x0010FFFF, 3, LNKD, 0 },
                Package () { 0x0011FFFF, 0, LNKB, 0 }, Package () { 0x0011FFFF, 1, LNKC, 0 }, Package () { 0x0011FFFF, 2, LNKD, 0 }, Package () { 0x0011FFFF, 3, LNKE, 0 },
                Package () { 0x0012FFFF, 0, LNKC, 0 }, Package () { 0x0012FFFF, 1, LNKD, 0 }, Package () { 0x0012FFFF, 2, LNKE, 0 }, Package () { 0x0012FFFF, 3, LNKF, 0 },
                Package () { 0x0013FFFF, 0, LNKD, 0 }, Package () { 0x0013FFFF, 1, LNKE, 0 }, Package () { 0x0013FFFF, 2, LNKF, 0 }, Package () { 0x0013FFFF, 3, LNKG, 0 },
                Package () { 0x0014FFFF, 0, LNKE, 0 }, Package () { 0x0014FFFF, 1, LNKF, 0 }, Package () { 0x0014FFFF, 2, LNKG, 0 }, Package () { 0x0014FFFF, 3, LNKH, 0 },
                Package () { 0x0015FFFF, 0, LNKF, 0 }, Package () { 0x0015FFFF, 1, LNKG, 0 }, Package () { 0x0015FFFF, 2, LNKH, 0 }, Package () { 0x0015FFFF, 3, LNKA, 0 },
                Package () { 0x0016FFFF, 0, LNKG, 0 }, Package () { 0x0016FFFF, 1, LNKH, 0 }, Package () { 0x0016FFFF, 2, LNKA, 0 }, Package () { 0x0016FFFF, 3, LNKB, 0 },
                Package () { 0x0017FFFF, 0, LNKH, 0 }, Package () { 0x0017FFFF, 1, LNKA, 0 }, Package () { 0x0017FFFF, 2, LNKB, 0 }, Package () { 0x0017FFFF, 3, LNKC, 0 },
                Package () { 0x0018FFFF, 0, LNKA, 0 }, Package () { 0x0018FFFF, 1, LNKB, 0 }, Package () { 0x0018FFFF, 2, LNKC, 0 }, Package () { 0x0018FFFF, 3, LNKD, 0 },
                Package () { 0x0019FFFF, 0, LNKB, 0 }, Package () { 0x0019FFFF, 1, LNKC, 0 }, Package () { 0x0019FFFF, 2, LNKD, 0 }, Package () { 0x0019FFFF, 3, LNKE, 0 },
                Package () { 0x001AFFFF, 0, LNKC, 0 }, Package () { 0x001AFFFF, 1, LNKD, 0 }, Package () { 0x001AFFFF, 2, LNKE, 0 }, Package () { 0x001AFFFF, 3, LNKF, 0 },
                Package () { 0x001BFFFF, 0, LNKD, 0 }, Package () { 0x001BFFFF, 1, LNKE, 0 }, Package () { 0x001BFFFF, 2, LNKF, 0 }, Package () { 0x001BFFFF, 3, LNKG, 0 },
                Package () { 0x001CFFFF, 0, LNKE, 0 }, Package () { 0x001CFFFF, 1, LNKF, 0 }, Package () { 0x001CFFFF, 2, LNKG, 0 }, Package () { 0x001CFFFF, 3, LNKH, 0 },
                Package () { 0x001DFFFF, 0, LNKF, 0 }, Package () { 0x001DFFFF, 1, LNKG, 0 }, Package () { 0x001DFFFF, 2, LNKH, 0 }, Package () { 0x001DFFFF, 3, LNKA, 0 },
                Package () { 0x001EFFFF, 0, LNKG, 0 }, Package () { 0x001EFFFF, 1, LNKH, 0 }, Package () { 0x001EFFFF, 2, LNKA, 0 }, Package () { 0x001EFFFF, 3, LNKB, 0 },
                Package () { 0x001FFFFF, 0, LNKH, 0 }, Package () { 0x001FFFFF, 1, LNKA, 0 }, Package () { 0x001FFFFF, 2, LNKB, 0 }, Package () { 0x001FFFFF, 3, LNKC, 0 }
            })
            Method (_PRT, 0, Serialized)
            {
                If (PICM) { Return (PRTA ()) }
                Return (PRTP)
            }

            Device (LPC)
            {
                Name (_ADR, 0x001F0000)
                OperationRegion (PIRQ, PCI_Config, 0x60, 0x0C)
                Field (PIRQ, ByteAcc, NoLock, Preserve) { PRQA, 8, PRQB, 8, PRQC, 8, PRQD, 8, Offset (8), PRQE, 8, PRQF, 8, PRQG, 8, PRQH, 8 }

                Device (PIC)
                {
                    Name (_HID, EisaId ("PNP0000"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0020, 0x0020, 0x01, 0x02)
                        IO (Decode16, 0x00A0, 0x00A0, 0x01, 0x02)
                        IO (Decode16, 0x04D0, 0x04D0, 0x01, 0x02)
                        IRQNoFlags () { 2 }
                    })
                }
                Device (TMR)
                {
                    Name (_HID, EisaId ("PNP0100"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0040, 0x0040, 0x01, 0x04)
                        IRQNoFlags () { 0 }
                    })
                }
                Device (SPKR)
                {
                    Name (_HID, EisaId ("PNP0800"))
                    Name (_CRS, ResourceTemplate () { IO (Decode16, 0x0061, 0x0061, 0x01, 0x01) })
                }
                Device (RTC)
                {
                    Name (_HID, EisaId ("PNP0B00"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0070, 0x0070, 0x01, 0x08)
                        IRQNoFlags () { 8 }
                    })
                }
                Device (COM1)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, 1)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x03F8, 0x03F8, 0x00, 0x08)
                        IRQNoFlags () { 4 }
                    })
                }
                Device (COM2)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, 2)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x02F8, 0x02F8, 0x00, 0x08)
                        IRQNoFlags () { 3 }
                    })
                }
                Device (KBD)
                {
                    Name (_HID, EisaId ("PNP0303"))
                    Method (_STA) { Return (KBEN) }
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0060, 0x0060, 0x01, 0x01)
                        IO (Decode16, 0x0064, 0x0064, 0x01, 0x01)
                        IRQNoFlags () { 1 }
                    })
                }
                Device (MOU)
                {
                    Name (_HID, EisaId ("PNP0F13"))
                    Method (_STA) { Return (KBEN) }
                    Name (_CRS, ResourceTemplate () { IRQNoFlags () { 12 } })
                }
            }
        }

        Device (HPET)
        {
            Name (_HID, EisaId ("PNP0103"))
            Method (_STA) { Return (HPEN) }
            Name (_CRS, ResourceTemplate () { Memory32Fixed (ReadWrite, 0xFED00000, 0x00000400) })
        }

        /* What no device above owns: ECAM, ACPI block, reset port. */
        Device (MBRD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xB0000000, 0x10000000)
                IO (Decode16, 0x0600, 0x0600, 0x01, 0x80)
                IO (Decode16, 0x0092, 0x0092, 0x01, 0x01)
            })
        }

        /* The PIRQ routers, for a guest in 8259 mode. */
        Name (BUF0, ResourceTemplate () { IRQ (Level, ActiveLow, Shared, ) { 0 } })
        Name (PRSS, ResourceTemplate () { IRQ (Level, ActiveLow, Shared, ) { 5, 10, 11 } })
        Method (LSTA, 1, NotSerialized)
        {
            If (Arg0 & 0x80) { Return (0x09) }
            Return (0x0B)
        }
        Method (LCRS, 1, Serialized)
        {
            CreateWordField (BUF0, 1, MASK)
            MASK = 1 << (Arg0 & 0x0F)
            If (Arg0 & 0x80) { MASK = 0 }
            Return (BUF0)
        }
        Method (LSRS, 1, Serialized)
        {
            CreateWordField (Arg0, 1, MASK)
            FindSetRightBit (MASK, Local0)
            Return (Local0 - 1)
        }

Device (LNKA)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 1)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQA)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQA |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQA)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQA = LSRS (Arg0) }
        }
        Device (LNKB)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 2)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQB)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQB |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQB)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQB = LSRS (Arg0) }
        }
        Device (LNKC)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 3)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQC)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQC |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQC)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQC = LSRS (Arg0) }
        }
        Device (LNKD)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 4)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQD)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQD |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQD)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQD = LSRS (Arg0) }
        }
        Device (LNKE)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 5)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQE)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQE |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQE)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQE = LSRS (Arg0) }
        }
        Device (LNKF)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 6)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQF)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQF |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQF)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQF = LSRS (Arg0) }
        }
        Device (LNKG)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 7)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQG)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQG |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQG)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQG = LSRS (Arg0) }
        }
        Device (LNKH)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 8)
            Method (_STA) { Return (LSTA (\_SB.PCI0.LPC.PRQH)) }
            Method (_PRS) { Return (PRSS) }
            Method (_DIS) { \_SB.PCI0.LPC.PRQH |= 0x80 }
            Method (_CRS) { Return (LCRS (\_SB.PCI0.LPC.PRQH)) }
            Method (_SRS, 1) { \_SB.PCI0.LPC.PRQH = LSRS (Arg0) }
        }
    }
}
