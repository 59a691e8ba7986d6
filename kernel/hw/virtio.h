/*
 * Virtual I/O Device (VIRTIO) Version 1.2, OASIS Committee Specification 01: transport, queues and the devices that Joist drives or emulates.
 * Everything is little-endian.
 */
#pragma once
#include "kernel/lib/base.h"

/* ---- PCI transport (4.1) ---- */
#define VIRTIO_PCI_VENDOR       0x1af4
#define VIRTIO_PCI_DEVICE(id)   (0x1040 + (id))
#define VIRTIO_ID_NET           1
#define VIRTIO_ID_BLOCK         2
#define VIRTIO_ID_CONSOLE       3
#define VIRTIO_ID_ENTROPY       4
#define VIRTIO_ID_BALLOON       5

struct virtio_pci_cap {
    uint8_t cap_vndr, cap_next, cap_len;
    uint8_t cfg_type;
#define VIRTIO_PCI_CAP_COMMON   1
#define VIRTIO_PCI_CAP_NOTIFY   2       /* + uint32_t notify_off_multiplier */
#define VIRTIO_PCI_CAP_ISR      3
#define VIRTIO_PCI_CAP_DEVICE   4
#define VIRTIO_PCI_CAP_PCI      5       /* + uint8_t pci_cfg_data[4] */
    uint8_t bar, id, padding[2];
    uint32_t offset, length;
};
_Static_assert(sizeof(struct virtio_pci_cap) == 16, "virtio capability");

struct virtio_pci_common {
    uint32_t device_feature_select, device_feature, driver_feature_select, driver_feature;
    uint16_t config_msix_vector;
#define VIRTIO_NO_VECTOR        0xffff
    uint16_t num_queues;
    uint8_t device_status;
#define VIRTIO_S_ACKNOWLEDGE    1
#define VIRTIO_S_DRIVER         2
#define VIRTIO_S_DRIVER_OK      4
#define VIRTIO_S_FEATURES_OK    8
#define VIRTIO_S_NEEDS_RESET    64
#define VIRTIO_S_FAILED         128
    uint8_t config_generation;
    /* of the queue selected */
    uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    uint64_t queue_desc, queue_driver, queue_device;
    uint16_t queue_notify_data, queue_reset;
};
_Static_assert(offsetof(struct virtio_pci_common, queue_select) == 0x16, "virtio common configuration");
_Static_assert(offsetof(struct virtio_pci_common, queue_desc) == 0x20, "virtio common configuration");
_Static_assert(sizeof(struct virtio_pci_common) == 0x3c + 4, "virtio common configuration (padded)");

#define VIRTIO_ISR_QUEUE        1
#define VIRTIO_ISR_CONFIG       2

/* ---- Feature bits for every device (6) ---- */
#define VIRTIO_F_INDIRECT_DESC  BIT(28)
#define VIRTIO_F_EVENT_IDX      BIT(29)
#define VIRTIO_F_VERSION_1      BIT(32)
#define VIRTIO_F_ACCESS_PLATFORM BIT(33)
#define VIRTIO_F_RING_PACKED    BIT(34)

/* ---- Split virtqueue (2.7) ---- */
struct vring_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
#define VRING_DESC_NEXT         1
#define VRING_DESC_WRITE        2       /* device writes, driver reads */
#define VRING_DESC_INDIRECT     4
    uint16_t next;
};
_Static_assert(sizeof(struct vring_desc) == 16, "virtqueue descriptor");
#define VRING_MAX_SIZE          32768
#define VRING_AVAIL_NO_INTERRUPT 1
#define VRING_USED_NO_NOTIFY    1
/* Offsets inside the available ring (driver area) and the used ring (device area) of a queue of n entries. */
#define VRING_AVAIL_FLAGS       0
#define VRING_AVAIL_IDX         2
#define VRING_AVAIL_RING(i)     (4 + 2 * (i))
#define VRING_AVAIL_USED_EVENT(n) (4 + 2 * (n))
#define VRING_AVAIL_BYTES(n)    (6 + 2 * (n))
#define VRING_USED_FLAGS        0
#define VRING_USED_IDX          2
#define VRING_USED_RING(i)      (4 + 8 * (i))   /* uint32_t id, len */
#define VRING_USED_AVAIL_EVENT(n) (4 + 8 * (n))
#define VRING_USED_BYTES(n)     (6 + 8 * (n))

/* 2.7.10: is an event wanted now that the index moved from `old` to `new`? */
static inline bool vring_need_event(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

/* ---- Block device (5.2) ---- */
#define VIRTIO_BLK_F_SIZE_MAX   BIT(1)
#define VIRTIO_BLK_F_SEG_MAX    BIT(2)
#define VIRTIO_BLK_F_RO         BIT(5)
#define VIRTIO_BLK_F_BLK_SIZE   BIT(6)
#define VIRTIO_BLK_F_FLUSH      BIT(9)
#define VIRTIO_BLK_F_TOPOLOGY   BIT(10)
#define VIRTIO_BLK_F_CONFIG_WCE BIT(11)
#define VIRTIO_BLK_F_MQ         BIT(12)
#define VIRTIO_BLK_F_DISCARD    BIT(13)
#define VIRTIO_BLK_F_WRITE_ZEROES BIT(14)

struct virtio_blk_config {
    uint64_t capacity;                  /* 512-byte sectors */
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp;         /* log2(physical / logical block) */
    uint8_t alignment_offset;
    uint16_t min_io_size;               /* logical blocks */
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
};
_Static_assert(sizeof(struct virtio_blk_config) == 64, "virtio-blk configuration");
_Static_assert(offsetof(struct virtio_blk_config, max_discard_sectors) == 36, "virtio-blk configuration");

struct virtio_blk_hdr {
    uint32_t type;
#define VIRTIO_BLK_T_IN         0
#define VIRTIO_BLK_T_OUT        1
#define VIRTIO_BLK_T_FLUSH      4
#define VIRTIO_BLK_T_GET_ID     8       /* 20 bytes */
#define VIRTIO_BLK_T_DISCARD    11
#define VIRTIO_BLK_T_WRITE_ZEROES 13
    uint32_t reserved;
    uint64_t sector;                    /* 512 bytes, whatever blk_size says */
};
_Static_assert(sizeof(struct virtio_blk_hdr) == 16, "virtio-blk request header");
#define VIRTIO_BLK_ID_BYTES     20
#define VIRTIO_BLK_S_OK         0
#define VIRTIO_BLK_S_IOERR      1
#define VIRTIO_BLK_S_UNSUPP     2

struct virtio_blk_range {               /* discard, write zeroes */
    uint64_t sector;
    uint32_t num_sectors;
    uint32_t flags;
#define VIRTIO_BLK_RANGE_UNMAP  1
};
_Static_assert(sizeof(struct virtio_blk_range) == 16, "virtio-blk discard segment");

/* ---- Console device (5.3) ---- */
#define VIRTIO_CONSOLE_F_SIZE   BIT(0)
#define VIRTIO_CONSOLE_F_MULTIPORT BIT(1)
#define VIRTIO_CONSOLE_F_EMERG_WRITE BIT(2)
struct virtio_console_config { uint16_t cols, rows; uint32_t max_nr_ports, emerg_wr; };
_Static_assert(sizeof(struct virtio_console_config) == 12, "virtio-console configuration");

/* ---- Network device (5.1) ---- */
#define VIRTIO_NET_F_CSUM       BIT(0)
#define VIRTIO_NET_F_GUEST_CSUM BIT(1)
#define VIRTIO_NET_F_MTU        BIT(3)
#define VIRTIO_NET_F_MAC        BIT(5)
#define VIRTIO_NET_F_MRG_RXBUF  BIT(15)
#define VIRTIO_NET_F_STATUS     BIT(16)
struct virtio_net_hdr {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};
_Static_assert(sizeof(struct virtio_net_hdr) == 12, "virtio-net header");
