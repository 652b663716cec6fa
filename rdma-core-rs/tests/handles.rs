//! Properties of the types themselves, found by the compiler; needs no device.
#![allow(missing_docs)]

use rdma_core_rs::cm::{
    CmEvent, CmId, ConnectRequest, Connection, Connector, EventChannel, Listener, PendingAccept,
};
use rdma_core_rs::{
    Buffer, CompletionChannel, CompletionQueue, Context, MemoryRegion, ProtectionDomain, QueuePair,
    RecvBatch, WorkBatch,
};

/// Ambiguous, and so an error, for a type that is `Clone`.
trait NotClone<Marker> {
    fn holds() {}
}
struct IsClone;
impl<T: ?Sized> NotClone<()> for T {}
impl<T: Clone> NotClone<IsClone> for T {}

fn shareable<T: Send + Sync>() {}

macro_rules! owning_handles {
    ($($handle:ty),* $(,)?) => {
        #[test]
        fn an_owning_handle_is_never_cloned_and_may_be_shared() {
            $(
                <$handle as NotClone<_>>::holds();
                shareable::<$handle>();
            )*
        }
    };
}

owning_handles!(
    Buffer,
    CmEvent,
    CmId,
    CompletionChannel,
    CompletionQueue,
    ConnectRequest,
    Connection,
    Connector,
    Context,
    EventChannel,
    Listener,
    MemoryRegion<Buffer>,
    PendingAccept,
    ProtectionDomain,
    QueuePair,
    RecvBatch,
    WorkBatch,
);
