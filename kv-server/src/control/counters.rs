//! What the server counts.

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that arrived, RENEWs included.
    pub frames: u64,
    /// RENEWs among them.
    pub renewals: u64,
    /// Sessions whose key was proven.
    pub authenticated: u64,
    /// Sessions whose key was not.
    pub auth_failed: u64,
    /// Sessions that were fenced.
    pub fenced: u64,
    /// Requests that were refused.
    pub requests_refused: u64,
    /// Sessions that ended because a frame broke a rule.
    pub violations: u64,
    /// Connection requests that were refused.
    pub connections_refused: u64,
    /// Writes that waited because memory for arriving values was used up.
    pub writes_waited: u64,
}

impl Counters {
    /// Name and value of each.
    #[must_use]
    pub fn items(&self) -> [(&'static str, u64); 9] {
        [
            ("server_frames_count", self.frames),
            ("server_renewals_count", self.renewals),
            ("authenticated_count", self.authenticated),
            ("auth_failed_count", self.auth_failed),
            ("fenced_count", self.fenced),
            ("requests_refused_count", self.requests_refused),
            ("violations_count", self.violations),
            ("connections_refused_count", self.connections_refused),
            ("writes_waited_count", self.writes_waited),
        ]
    }
}
