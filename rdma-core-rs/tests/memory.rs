//! Registering memory: what is granted, what is refused, and with which words.
#![allow(unsafe_code)]

mod common;

use std::sync::Arc;

use common::*;
use rdma_core_rs::{Access, Buffer, Error, ProtectionDomain, Registrable, WcStatus};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

fn domain() -> Arc<ProtectionDomain> {
    ProtectionDomain::new(&open()).unwrap()
}

/// A memfd mapping that several regions share.
struct Mapping {
    ptr: *mut u8,
    len_bytes: usize,
}

impl Mapping {
    fn new(len_bytes: usize) -> Mapping {
        let fd = memfd_create("vkv-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len_bytes as u64).unwrap();
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let ptr = unsafe { mmap(std::ptr::null_mut(), len_bytes, rights, MapFlags::SHARED, &fd, 0) };
        Mapping {
            ptr: ptr.unwrap().cast(),
            len_bytes,
        }
    }
}

// SAFETY: only the device touches the bytes, and `Drop` unmaps.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: mapped from `new` to `Drop` at one address, and no reference to the bytes is made.
unsafe impl Registrable for Mapping {
    fn ptr(&self) -> *mut u8 {
        self.ptr
    }
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, unmapped once.
        unsafe { munmap(self.ptr.cast(), self.len_bytes) }.unwrap();
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn shared_memory_lives_as_long_as_its_regions() {
    let pd = domain();
    let memory: Arc<dyn Registrable> = Arc::new(Mapping::new(1 << 20));
    let one = pd.register(memory.clone(), Access::REMOTE_READ).unwrap();
    let two = pd.register(memory.clone(), Access::REMOTE_READ).unwrap();
    assert_ne!(one.rkey(), two.rkey());
    assert_eq!(
        (one.addr(), one.len_bytes(), one.access()),
        (two.addr(), 1 << 20, Access::REMOTE_READ)
    );
    drop(memory);
    let memory = one.deregister().unwrap();
    assert_eq!(Arc::strong_count(&memory), 2);
    drop(two);
    assert_eq!(Arc::strong_count(&memory), 1);
    assert!(pd.context().query_device().is_ok());
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_raw_range_can_be_read_by_a_peer() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let mapping = Mapping::new(8192);
    // SAFETY: `mapping` outlives the region, and nobody makes references to its bytes.
    let source = unsafe { owner.pd.register_raw(mapping.ptr, 8192, Access::REMOTE_READ) }.unwrap();
    // SAFETY: the mapping is writable and has this length; no device writes it.
    unsafe { std::ptr::write_bytes(mapping.ptr, 0x77, 8192) };
    let sink = reader.region(8192, Access::LOCAL_WRITE);
    post_read(&reader, 1, remote(&source), &[sink.sge(0, 8192).unwrap()]);
    assert_eq!(reader.completion(), (1, WcStatus::SUCCESS));
    assert_eq!(sink.memory().to_vec(0, 8192).unwrap(), [0x77; 8192]);
    drop(source);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn memory_that_is_not_mapped_is_refused_with_address_and_hint() {
    let pd = domain();
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let hole =
        unsafe { mmap_anonymous(std::ptr::null_mut(), 8192, ProtFlags::READ, MapFlags::PRIVATE) }.unwrap();
    // SAFETY: just mapped with this length; nothing refers to it.
    unsafe { munmap(hole, 8192) }.unwrap();
    // SAFETY: registering a range that cannot be reached is refused, so nothing is promised of it.
    let error = unsafe { pd.register_raw(hole.cast(), 8192, Access::REMOTE_READ) }.unwrap_err();
    assert_eq!(error.errno(), Some(libc::EFAULT), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("{:#x}", hole.addr())) && text.contains("8192 bytes"),
        "{text}"
    );
    assert!(
        text.contains("REMOTE_READ") && text.contains("not all mapped"),
        "{text}"
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn too_little_memlock_is_named() {
    // A child, for the limit is the whole process's and root must lose its exemption.
    if std::env::var_os("VKV_TEST_MEMLOCK_CHILD").is_some() {
        let pd = domain();
        let error = pd
            .register(Buffer::new(1 << 20).unwrap(), Access::REMOTE_READ)
            .unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOMEM), "{error}");
        assert!(error.to_string().contains("locked memory is 64 KiB"), "{error}");
        return;
    }
    let me = std::env::current_exe().unwrap();
    let script = "ulimit -l 64 && exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock \"$0\" \
                  --ignored --exact too_little_memlock_is_named";
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(me)
        .env("VKV_TEST_MEMLOCK_CHILD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn rights_that_do_not_go_together_and_empty_ranges_are_refused() {
    let pd = domain();
    let error = pd
        .register(Buffer::new(64).unwrap(), Access::REMOTE_WRITE)
        .unwrap_err();
    assert!(
        matches!(error, Error::InvalidArgument { .. }) && error.to_string().contains("LOCAL_WRITE"),
        "{error}"
    );
    // SAFETY: an empty range is refused before the device hears of it.
    let error = unsafe { pd.register_raw(std::ptr::null_mut(), 0, Access::REMOTE_READ) }.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    let region = pd
        .register(Buffer::new(64).unwrap(), Access::REMOTE_READ)
        .unwrap();
    assert!(region.sge(0, 64).is_ok());
    assert!(matches!(region.sge(1, 64), Err(Error::InvalidArgument { .. })));
    assert!(matches!(
        region.sge(usize::MAX, 2),
        Err(Error::InvalidArgument { .. })
    ));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_dmabuf_is_refused_cleanly_where_the_device_has_none() {
    let pd = domain();
    let fd = memfd_create("not-a-dmabuf", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 4096).unwrap();
    let error = pd
        .register_dmabuf(fd, 0, 4096, 0, Access::REMOTE_READ)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsupported {
                call: "ibv_reg_dmabuf_mr",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains(&device_name()), "{error}");
    assert!(
        pd.register(Buffer::new(64).unwrap(), Access::REMOTE_READ).is_ok(),
        "the domain still works"
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn on_demand_works_where_the_device_says_so_and_is_refused_cleanly_elsewhere() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let odp = owner.pd.context().query_device().unwrap().odp;
    let buffer = Buffer::new(1 << 20).unwrap();
    buffer.fill(6);
    let answer = owner.pd.register(buffer, Access::REMOTE_READ | Access::ON_DEMAND);
    if !odp.supported {
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        return;
    }
    assert!(odp.rc_read, "{odp:?}");
    let source = answer.unwrap();
    let sink = reader.region(4096, Access::LOCAL_WRITE);
    post_read(&reader, 1, remote(&source), &[sink.sge(0, 4096).unwrap()]);
    assert_eq!(reader.completion(), (1, WcStatus::SUCCESS));
    assert_eq!(sink.memory().to_vec(0, 4096).unwrap(), [6; 4096]);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn relaxed_ordering_is_a_wish_that_never_fails() {
    let pd = domain();
    let access = Access::LOCAL_WRITE | Access::RELAXED_ORDERING;
    assert!(pd.register(Buffer::new(4096).unwrap(), access).is_ok());
}
