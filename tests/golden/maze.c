/* maze: GDT set-up by lima2 VERSION */

{
    rashpa_gdt_t *GDT = rashpaManagerCreateGDT(manager_pt, "FullDet1", "CTR1");
    rashpaGDTSetSourceFullImage(GDT);
    rashpaGDTSetAlignment(GDT, 256, 1, 0, 0);
    rashpaGDTSetSourceSlices(GDT, 0, 12, 10);
    rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR);
    rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP);

    ssize_t lbuff_bytes = 16*(1024*1024);
    rashpa_buffer_t* buffer = rashpaManagerGetGDTBuffer(manager_pt, GDT, lbuff_bytes);
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace");
}

{
    rashpa_gdt_t *GDT = rashpaManagerCreateGDT(manager_pt, "FullDet2", "CTR2");
    rashpaGDTSetSourceFullImage(GDT);
    rashpaGDTSetAlignment(GDT, 256, 1, 0, 0);
    rashpaGDTSetSourceSlices(GDT, 0, 22, 5);
    rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR);
    rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP);

    ssize_t lbuff_bytes = 16*(1024*1024);
    rashpa_buffer_t* buffer = rashpaManagerGetGDTBuffer(manager_pt, GDT, lbuff_bytes);
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace");
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "dataMSpace");
}

{
    rashpa_gdt_t *GDT = rashpaManagerCreateGDT(manager_pt, "GhostRoom", "CTR1");
    rashpaGDTSetSourceImage(GDT, 190, 125, 190, 78);
    rashpaGDTSetAlignment(GDT, 1, 1, 0, 0);
    rashpaGDTSetSourceSlices(GDT, 0, 22, 5);
    rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR);
    rashpaGDTSetEvents(GDT, 0, RASHPA_EV_ATEND);

    ssize_t lbuff_bytes = 10*(1024*1024);
    rashpa_buffer_t* buffer = rashpaManagerGetGDTBuffer(manager_pt, GDT, lbuff_bytes);
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace");
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "dataMSpace");
}

{
    rashpa_gdt_t *GDT = rashpaManagerCreateGDT(manager_pt, "LeftCorridor", "CTR1");
    rashpaGDTSetSourceImage(GDT, 35, 89, 204, 50);
    rashpaGDTSetAlignment(GDT, 1, 1, 0, 0);
    rashpaGDTSetSourceSlices(GDT, 0, 114, 1);
    rashpaGDTSetRules(GDT, 4, 0, RASHPA_OVERWRITE | RASHPA_ONESHOT);
    rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP | RASHPA_EV_ATEND);

    ssize_t lbuff_bytes = 10*(1024*1024);
    rashpa_buffer_t* buffer = rashpaManagerGetGDTBuffer(manager_pt, GDT, lbuff_bytes);
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "GPUMSpace");
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "GPUMSpace");
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "GPUMSpace");
    rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "GPUMSpace");
}
