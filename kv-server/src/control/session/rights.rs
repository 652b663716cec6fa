//! What a session may ask: by its key's role, the datasets that the key lists, what is open, and ranges of fields.

use kv_proto::auth::Role;
use kv_proto::control::{Request, Status};
use kv_proto::layout::{KEY_MAX_BYTES, dataset_name_is_valid};

use super::{Identity, Refusal, Session, Step, over};
use crate::control::leases::DatasetId;
use crate::control::options::Options;

impl Session {
    /// Whether the key and what is open allow a request, and its fields are in range.
    pub(super) fn judge(
        &self,
        identity: &Identity,
        request: &Request,
        options: &Options,
    ) -> Result<(), Step> {
        let refuse = |status: Status| Err(Step::Refuse(status.into()));
        if identity.key.role < needed(request) {
            return refuse(Status::Forbidden);
        }
        for name in names(request).into_iter().flatten() {
            if !dataset_name_is_valid(name) {
                return refuse(Status::BadName);
            }
            if !identity.key.allows(name) {
                return refuse(Status::Forbidden);
            }
        }
        if let Some(dataset) = dataset(request)
            && self.holds.get(dataset).is_none()
        {
            return refuse(Status::NoDataset);
        }
        match request {
            Request::Lookup { key, .. } | Request::Alloc { key, .. } | Request::Delete { key, .. }
                if !(1..=KEY_MAX_BYTES).contains(&key.0.len()) =>
            {
                refuse(Status::BadKey)
            }
            Request::Alloc { operation: 0, .. } | Request::Delete { operation: 0, .. } => Err(over(
                Refusal::new(Status::BadFrame, "operations are numbered from 1"),
            )),
            Request::List { limit: 0, .. } => {
                Err(over(Refusal::new(Status::BadFrame, "a list of no entries")))
            }
            Request::Alloc { operation, .. } if self.puts.get(*operation).is_err() => {
                self.puts.may_begin(options).map_err(Step::Refuse)
            }
            _ => Ok(()),
        }
    }
}

/// The least role that may ask this.
#[must_use]
pub const fn needed(request: &Request) -> Role {
    match request {
        Request::Create { .. } | Request::Drop { .. } | Request::Rename { .. } => Role::Admin,
        Request::Alloc { .. }
        | Request::Append { .. }
        | Request::Commit { .. }
        | Request::Abort { .. }
        | Request::Delete { .. }
        | Request::SnapshotCreate { .. }
        | Request::SnapshotDrop { .. } => Role::Write,
        _ => Role::Read,
    }
}

/// Names of datasets in a request.
fn names(request: &Request) -> [Option<&[u8]>; 2] {
    match request {
        Request::Open { name } | Request::Create { name } | Request::Drop { name } => [Some(&name.0), None],
        Request::Rename { from, to } => [Some(&from.0), Some(&to.0)],
        _ => [None, None],
    }
}

/// The dataset that must be open for a request.
pub(super) fn dataset(request: &Request) -> Option<&DatasetId> {
    match request {
        Request::Close { dataset }
        | Request::Table { dataset, .. }
        | Request::Tokens { dataset, .. }
        | Request::Lookup { dataset, .. }
        | Request::Alloc { dataset, .. }
        | Request::Delete { dataset, .. }
        | Request::List { dataset, .. }
        | Request::Load { dataset, .. }
        | Request::Stage { dataset, .. }
        | Request::SnapshotCreate { dataset, .. }
        | Request::SnapshotDrop { dataset, .. }
        | Request::Snapshots { dataset, .. }
        | Request::SnapshotOpen { dataset, .. } => Some(dataset),
        Request::Stat { dataset } if *dataset != [0; 16] => Some(dataset),
        _ => None,
    }
}
