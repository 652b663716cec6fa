//! Who was refused memory for a value and asks again, first come first. No I/O.
//!
//! Who asks after them leaves them the room that they need: else one session's next value took what its last one gave
//! back, each time, before those came back who wait and ask again.

use std::collections::VecDeque;

use kv_fabric::ConnectionId;

use super::clock::BootMs;
use crate::store::Kind;

#[derive(Debug)]
struct Waiting {
    connection: ConnectionId,
    need_bytes: u64,
    asked: BootMs,
}

/// Sessions that wait, each once.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Waiting>,
}

/// One line for each kind of values that hold memory while their clients take their time.
#[derive(Debug, Default)]
pub(super) struct Lines {
    medium: Line,
    large: Line,
}

impl Lines {
    fn of(&mut self, kind: Kind) -> Option<&mut Line> {
        match kind {
            Kind::Small => None,
            Kind::Medium => Some(&mut self.medium),
            Kind::Large => Some(&mut self.large),
        }
    }

    /// Whether a session may take `need_bytes` of `free_bytes`: those before it find what they need in the rest. If not, it
    /// has a place, the one that it had. Who last asked before `since` has lost its own.
    pub(super) fn may_take(
        &mut self,
        kind: Kind,
        connection: ConnectionId,
        need_bytes: u64,
        free_bytes: u64,
        [since, now]: [BootMs; 2],
    ) -> bool {
        let Some(line) = self.of(kind) else {
            return true;
        };
        line.waiting.retain(|waiting| waiting.asked >= since);
        line.may_take(connection, need_bytes, free_bytes) || {
            line.wait(connection, need_bytes, now);
            false
        }
    }

    /// A session got what it asked for.
    pub(super) fn leave(&mut self, kind: Kind, connection: ConnectionId) {
        if let Some(line) = self.of(kind) {
            line.waiting.retain(|waiting| waiting.connection != connection);
        }
    }
}

impl Line {
    fn may_take(&self, connection: ConnectionId, need_bytes: u64, free_bytes: u64) -> bool {
        let before = self
            .waiting
            .iter()
            .take_while(|waiting| waiting.connection != connection);
        let theirs: u64 = before.map(|waiting| waiting.need_bytes).sum();
        theirs.saturating_add(need_bytes) <= free_bytes
    }

    /// Notes that a session was refused so many bytes; it keeps its place.
    fn wait(&mut self, connection: ConnectionId, need_bytes: u64, asked: BootMs) {
        let waiting = Waiting {
            connection,
            need_bytes,
            asked,
        };
        match self.waiting.iter_mut().find(|it| it.connection == connection) {
            Some(place) => *place = waiting,
            None => self.waiting.push_back(waiting),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootMs = BootMs(10_000);

    fn asked(lines: &mut Lines, session: u64, need: u64, free: u64) -> bool {
        lines.may_take(Kind::Large, ConnectionId(session), need, free, [NOW, NOW])
    }

    #[test]
    fn who_came_first_is_left_what_it_needs() {
        let lines = &mut Lines::default();
        assert!(asked(lines, 2, 5, 5));
        assert!(!asked(lines, 1, 4, 3) && !asked(lines, 2, 3, 6));
        for (session, most) in [(1, 9), (2, 5), (3, 2)] {
            assert!(asked(lines, session, most, 9), "{session}");
        }
        assert!(!asked(lines, 3, 3, 9));
        // It asks for less, and is still first.
        assert!(!asked(lines, 1, 1, 0));
        assert!(asked(lines, 2, 8, 9) && !asked(lines, 3, 6, 9));
        lines.leave(Kind::Large, ConnectionId(1));
        assert!(asked(lines, 3, 6, 9) && !asked(lines, 3, 7, 9));
        // Kinds have lines of their own, and short values none.
        for (kind, may) in [(Kind::Small, true), (Kind::Medium, false)] {
            assert_eq!(lines.may_take(kind, ConnectionId(4), 2, 1, [NOW, NOW]), may);
        }
        assert_eq!((lines.medium.waiting.len(), lines.large.waiting.len()), (1, 2));
    }

    /// Places of sessions that were over stayed as long as there was no memory for anybody.
    #[test]
    fn who_does_not_ask_again_holds_up_nobody_and_is_forgotten() {
        let mut lines = Lines::default();
        for after in 0..100 {
            let times = [NOW + after, NOW + after + 9];
            assert!(!lines.may_take(Kind::Large, ConnectionId(after), 4, 3, times));
            assert!(lines.large.waiting.len() <= 10);
        }
        let late = NOW + 108;
        assert!(!lines.may_take(Kind::Large, ConnectionId(100), 1, 4, [late, late]));
        assert!(lines.may_take(Kind::Large, ConnectionId(99), 4, 4, [late, late]));
        assert!(lines.may_take(Kind::Large, ConnectionId(101), 3, 4, [late + 1, late + 1]));
    }
}
