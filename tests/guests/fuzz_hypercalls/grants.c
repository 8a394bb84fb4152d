/* Random calls about grants. */
#include "fuzz.h"

/* What the peer has given us goes back to the hypervisor: our own frames are as many as they were. */
static void give_back(u64 mfn)
{
    struct xen_memory_reservation op = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(op.extent_start, &mfn);
    hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, PTR(&op));
}

/* Entries of both versions begin alike. */
void random_grant(struct random *r)
{
    u64 gref = 8 + below(r, 16), mfn = pool_mfn[below(r, NR_POOL)];
    volatile grant_entry_v1_t *v1 = (volatile grant_entry_v1_t *)identity.grants + gref;
    volatile grant_entry_v2_t *v2 = (volatile grant_entry_v2_t *)identity.grants + gref;
    volatile grant_entry_header_t *header = identity.grant_version == 1 ? (volatile void *)v1 : &v2->hdr;
    if ((header->flags & (GTF_type_mask | GTF_transfer_completed)) == (GTF_accept_transfer | GTF_transfer_completed))
        give_back(identity.grant_version == 1 ? v1->frame : v2->full_page.frame);
    header->domid = below(r, 8) ? peer : self;
    if (identity.grant_version == 1) {
        v1->frame = (u32)mfn;
    } else {
        v2->full_page.frame = mfn;
        v2->sub_page.page_off = below(r, 2) ? 0 : number(r);
        v2->sub_page.length = below(r, 4096);
    }
    asm volatile("" ::: "memory");
    header->flags = PICK(r, GTF_permit_access, GTF_permit_access, GTF_permit_access, GTF_permit_access | GTF_readonly,
                         GTF_accept_transfer, GTF_permit_access | GTF_sub_page, GTF_transitive, 0, 0x301);
}

/* Mappings that are there, for all we know. What is forgotten is unmapped first, or the peer's frames were held for ever. */
static struct mapping {
    u64 host_addr, bus_addr;
    u32 handle, is_there;
} mappings[2][16];

static void note_mapping(struct random *r, const struct gnttab_map_grant_ref *map)
{
    struct mapping *mapping = &mappings[r->vcpu][below(r, 16)];
    struct gnttab_unmap_grant_ref unmap = {
        .host_addr = mapping->host_addr, .dev_bus_addr = mapping->bus_addr, .handle = mapping->handle};
    if (mapping->is_there)
        hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref, PTR(&unmap), 1, 0, 0);
    *mapping = (struct mapping){.host_addr = map->flags & GNTMAP_host_map ? map->host_addr : 0,
                                .bus_addr = map->flags & GNTMAP_device_map ? map->dev_bus_addr : 0,
                                .handle = map->handle,
                                .is_there = 1};
}

static int16_t status_of(u64 cmd, void *args)
{
    switch (cmd) {
    case GNTTABOP_map_grant_ref:
        return ((struct gnttab_map_grant_ref *)args)->status;
    case GNTTABOP_unmap_grant_ref:
        return ((struct gnttab_unmap_grant_ref *)args)->status;
    case GNTTABOP_unmap_and_replace:
        return ((struct gnttab_unmap_and_replace *)args)->status;
    case GNTTABOP_setup_table:
        return ((struct gnttab_setup_table *)args)->status;
    case GNTTABOP_transfer:
        return ((struct gnttab_transfer *)args)->status;
    case GNTTABOP_copy:
        return ((struct gnttab_copy *)args)->status;
    case GNTTABOP_query_size:
        return ((struct gnttab_query_size *)args)->status;
    case GNTTABOP_get_status_frames:
        return ((struct gnttab_get_status_frames *)args)->status;
    case GNTTABOP_swap_grant_ref:
        return ((struct gnttab_swap_grant_ref *)args)->status;
    default:
        return 0;
    }
}

long grant(struct random *r)
{
    void *args = &args_of[r->vcpu];
    u64 cmd = below(r, 5) ? PICK(r, 0, 0, 0, 1, 1, 5, 7) : PICK(r, 2, 3, 4, 6, 8, 9, 10, 11, 12);
    domid_t domid = below(r, 6) ? peer : random_domid(r);
    u64 place = PTR(&window[below(r, NR_WINDOW)]), other = PTR(&window[below(r, NR_WINDOW)]);
    u32 gref = below(r, 16) ? 8 + below(r, 16) : number(r), handle_nr = below(r, 16) ? below(r, 12) : number(r);
    struct mapping *mapping = &mappings[r->vcpu][below(r, 16)];

    if (below(r, 2) == 0)
        random_grant(r);
    switch (cmd) {
    case GNTTABOP_map_grant_ref: {
        u32 flags = PICK(r, 2, 2, 6, 3, 1, 7, 0x12, 0x16, 0x0a, 0);
        u64 at = flags & GNTMAP_contains_pte ? random_slot(r) : place;
        *(struct gnttab_map_grant_ref *)args =
            (struct gnttab_map_grant_ref){.host_addr = at, .flags = flags, .ref = gref, .dom = domid};
        break;
    }
    case GNTTABOP_unmap_grant_ref:
        if (mapping->is_there && below(r, 4)) {
            *(struct gnttab_unmap_grant_ref *)args =
                (struct gnttab_unmap_grant_ref){.host_addr = mapping->host_addr,
                                                .dev_bus_addr = below(r, 4) ? mapping->bus_addr : 0,
                                                .handle = mapping->handle};
            mapping->is_there = 0;
            break;
        }
        *(struct gnttab_unmap_grant_ref *)args = (struct gnttab_unmap_grant_ref){
            .host_addr = below(r, 4) ? place : random_slot(r),
            .dev_bus_addr = below(r, 2) ? 0 : random_mfn(r) << 12,
            .handle = handle_nr};
        break;
    case GNTTABOP_unmap_and_replace:
        *(struct gnttab_unmap_and_replace *)args =
            (struct gnttab_unmap_and_replace){.host_addr = place, .new_addr = other, .handle = handle_nr};
        if (mapping->is_there && below(r, 2)) {
            ((struct gnttab_unmap_and_replace *)args)->host_addr = mapping->host_addr;
            ((struct gnttab_unmap_and_replace *)args)->handle = mapping->handle;
            mapping->is_there = 0;
        }
        break;
    case GNTTABOP_copy: {
        struct gnttab_copy *copy = args;
        copy->flags = PICK(r, 1, 2, 3, 0, 3, 7);
        copy->source.domid = copy->flags & GNTCOPY_source_gref ? domid : DOMID_SELF;
        copy->dest.domid = copy->flags & GNTCOPY_dest_gref ? domid : DOMID_SELF;
        copy->source.u.gmfn = copy->flags & GNTCOPY_source_gref ? gref : pool_mfn[below(r, NR_POOL)];
        copy->dest.u.gmfn = copy->flags & GNTCOPY_dest_gref ? gref : pool_mfn[below(r, NR_POOL)];
        copy->source.offset = PICK(r, 0, 8, 2048, 4095, 65535);
        copy->dest.offset = PICK(r, 0, 8, 4096);
        copy->len = PICK(r, 0, 8, 64, 2048, 65535);
        break;
    }
    case GNTTABOP_get_status_frames:
        *(struct gnttab_get_status_frames *)args =
            (struct gnttab_get_status_frames){.nr_frames = below(r, 3), .dom = DOMID_SELF, .frame_list.p = (void *)handle(r)};
        break;
    case GNTTABOP_setup_table:
        ((struct gnttab_setup_table *)args)->dom = DOMID_SELF;
        ((struct gnttab_setup_table *)args)->nr_frames = 1 + below(r, 3);
        *(u64 *)(args + 16) = handle(r);
        break;
    default:
        for (int i = 0; i < 8; i++)
            ((u32 *)args)[i] = below(r, 2) ? gref : number(r);
        ((domid_t *)args)[0] = cmd == GNTTABOP_swap_grant_ref ? gref : random_domid(r);
    }
    r->sub = cmd;
    long result = hypercall5(__HYPERVISOR_grant_table_op, cmd, PTR(args), below(r, 16) ? 1 : below(r, 4), 0, 0);
    if (result != 0)
        return result;
    int16_t status = status_of(cmd, args);
    if (cmd == GNTTABOP_map_grant_ref && status == 0)
        note_mapping(r, args);
    return status;
}
