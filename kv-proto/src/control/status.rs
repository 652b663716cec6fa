//! Outcomes of requests.

/// Outcome of a request: the `status` of its answer. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs, reason = "each is said in PROTOCOL.md's table and by its text")]
pub enum Status {
    Ok = 0,
    BadFrame = 1,
    Version = 2,
    AuthFailed = 3,
    Forbidden = 4,
    NoDataset = 5,
    Exists = 6,
    BadName = 7,
    BadKey = 8,
    TooLarge = 9,
    Busy = 10,
    NoSpace = 11,
    NoMemory = 12,
    Unknown = 13,
    NotFound = 14,
    Io = 15,
    Crc = 16,
    Stale = 17,
    Limit = 18,
    Unsupported = 19,
    ShuttingDown = 20,
    Order = 21,
}

impl Status {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 22] = [
        Self::Ok,
        Self::BadFrame,
        Self::Version,
        Self::AuthFailed,
        Self::Forbidden,
        Self::NoDataset,
        Self::Exists,
        Self::BadName,
        Self::BadKey,
        Self::TooLarge,
        Self::Busy,
        Self::NoSpace,
        Self::NoMemory,
        Self::Unknown,
        Self::NotFound,
        Self::Io,
        Self::Crc,
        Self::Stale,
        Self::Limit,
        Self::Unsupported,
        Self::ShuttingDown,
        Self::Order,
    ];

    /// The status with this number.
    #[must_use]
    pub fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }

    /// What it means, in words for a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::BadFrame => "the frame is malformed",
            Self::Version => "no protocol version in common",
            Self::AuthFailed => "the key is unknown or its proof is wrong",
            Self::Forbidden => "the key may not do this",
            Self::NoDataset => "there is no such dataset",
            Self::Exists => "a dataset of this name exists",
            Self::BadName => "a dataset's name is 1 to 64 of a-z 0-9 . _ -",
            Self::BadKey => "a key has 1 to 1024 bytes",
            Self::TooLarge => "the value is longer than the server takes",
            Self::Busy => "the server is busy: ask again",
            Self::NoSpace => "the server's disk is full",
            Self::NoMemory => "the server's memory budget is reached",
            Self::Unknown => "the outcome of this operation is not known any more",
            Self::NotFound => "there is no such key",
            Self::Io => "the server's storage failed",
            Self::Crc => "the bytes that arrived do not have the CRC that was announced",
            Self::Stale => "what was named is not there any more",
            Self::Limit => "a limit of the server is reached",
            Self::Unsupported => "the server does not do this",
            Self::ShuttingDown => "the server is shutting down",
            Self::Order => "the frame is out of order",
        }
    }
}
