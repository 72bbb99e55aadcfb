//! How the C library's allocator keeps memory: glibc, `mallopt(3)`.
#![allow(unsafe_code)]

/// Free memory at the heap's end that is kept from the kernel.
const TRIM_THRESHOLD_BYTES: libc::c_int = 128 * 1024;
/// Blocks from this size on are mappings of their own: freed, they are the kernel's again at once.
const MMAP_THRESHOLD_BYTES: libc::c_int = 128 * 1024;

/// One heap for all threads, which gives back what is free: a heap per thread keeps what its thread once needed.
/// Call it before there are threads.
pub fn keep_one_heap() {
    let settings = [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
    ];
    for (parameter, value) in settings {
        // SAFETY: only numbers are passed; a parameter that is refused changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives every free page of the heap back to the kernel, not only those at its end: `malloc_trim(3)`. Walks the whole
/// heap, which stops other threads that allocate for some milliseconds.
pub fn give_back() {
    // SAFETY: takes no pointer; the allocator locks itself.
    unsafe { libc::malloc_trim(0) };
}
