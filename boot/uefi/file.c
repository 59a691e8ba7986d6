#include "boot/uefi/loader.h"

#define CHUNK (8u << 20)        /* some firmware fails on reads of hundreds of megabytes */

EFI_STATUS volume_open(EFI_HANDLE image, EFI_FILE_HANDLE *root)
{
    EFI_LOADED_IMAGE *self;
    EFI_FILE_IO_INTERFACE *fs;
    EFI_STATUS s = BS->HandleProtocol(image, &gEfiLoadedImageProtocolGuid, (void **)&self);

    if (!EFI_ERROR(s))
        s = BS->HandleProtocol(self->DeviceHandle, &gEfiSimpleFileSystemProtocolGuid, (void **)&fs);
    if (!EFI_ERROR(s))
        s = fs->OpenVolume(fs, root);
    if (EFI_ERROR(s))
        return fail(s, L"the loader was not started from a file system (%r). Start it from a FAT volume that holds the folder \\joist.", s);
    return s;
}

EFI_STATUS file_open(EFI_FILE_HANDLE root, const CHAR16 *path, EFI_FILE_HANDLE *file, uint64_t *size)
{
    uint64_t buf[(SIZE_OF_EFI_FILE_INFO + 512 * sizeof(CHAR16)) / 8 + 1];
    EFI_FILE_INFO *info = (EFI_FILE_INFO *)buf;
    UINTN len = sizeof(buf);
    EFI_STATUS s = root->Open(root, file, (CHAR16 *)path, EFI_FILE_MODE_READ, 0);

    if (s == EFI_NOT_FOUND)
        return s;
    if (!EFI_ERROR(s))
        s = (*file)->GetInfo(*file, &gEfiFileInfoGuid, &len, info);
    if (EFI_ERROR(s))
        return fail(s, L"%s cannot be opened (%r). Copy the files onto the volume again.", path, s);
    *size = info->FileSize;
    return s;
}

EFI_STATUS file_read(EFI_FILE_HANDLE file, const CHAR16 *path, uint64_t pos, void *buf, uint64_t len)
{
    EFI_STATUS s = file->SetPosition(file, pos);
    uint8_t *p = buf;

    while (!EFI_ERROR(s) && len) {
        UINTN n = len < CHUNK ? len : CHUNK;
        s = file->Read(file, &n, p);
        if (!EFI_ERROR(s) && n == 0)
            s = EFI_END_OF_FILE;
        p += n;
        len -= n;
    }
    if (EFI_ERROR(s))
        return fail(s, L"%s cannot be read (%r). Copy it onto the volume again, or use another stick.", path, s);
    return s;
}

EFI_STATUS file_load(EFI_FILE_HANDLE root, const CHAR16 *path, uint8_t **data, uint64_t *size)
{
    EFI_FILE_HANDLE file;
    EFI_PHYSICAL_ADDRESS at = BELOW_4G;
    EFI_STATUS s = file_open(root, path, &file, size);

    if (EFI_ERROR(s))
        return s;
    UINTN pages = *size / EFI_PAGE_SIZE + 1;
    s = BS->AllocatePages(AllocateMaxAddress, EfiLoaderData, pages, &at);
    if (EFI_ERROR(s))
        fail(s, L"there is no room for %s, %ld MiB, in the memory below 4 GiB. Boot with a smaller image store.", path, *size >> 20);
    else
        s = file_read(file, path, 0, (void *)at, *size);
    file->Close(file);
    *data = (uint8_t *)at;
    if (!EFI_ERROR(s))
        ZeroMem(*data + *size, pages * EFI_PAGE_SIZE - *size);
    return s;
}
