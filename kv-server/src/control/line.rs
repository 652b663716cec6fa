//! Who was refused memory for a value and asks again, first come first. No I/O.
//!
//! Who asks after them leaves them the room that they need: else one session's next value took what its last one gave
//! back, each time, before those came back who wait and ask again.

use std::collections::VecDeque;

use kv_fabric::ConnectionId;

use super::clock::BootMs;

#[derive(Debug)]
struct Waiting {
    connection: ConnectionId,
    need_bytes: u64,
    asked: BootMs,
}

/// Sessions that wait, each once.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<Waiting>,
}

impl Line {
    /// Whether a session may take `need_bytes` of `free_bytes`: those before it find what they need in the rest. Who last
    /// asked before `since` has lost its place.
    pub(super) fn may_take(
        &mut self,
        connection: ConnectionId,
        need_bytes: u64,
        free_bytes: u64,
        since: BootMs,
    ) -> bool {
        self.waiting.retain(|waiting| waiting.asked >= since);
        let before = self
            .waiting
            .iter()
            .take_while(|waiting| waiting.connection != connection);
        let theirs: u64 = before.map(|waiting| waiting.need_bytes).sum();
        theirs.saturating_add(need_bytes) <= free_bytes
    }

    /// Notes that a session was refused so many bytes; it keeps its place.
    pub(super) fn wait(&mut self, connection: ConnectionId, need_bytes: u64, asked: BootMs) {
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

    /// A session got what it asked for.
    pub(super) fn leave(&mut self, connection: ConnectionId) {
        self.waiting.retain(|waiting| waiting.connection != connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootMs = BootMs(10_000);

    #[test]
    fn who_came_first_is_left_what_it_needs() {
        let mut line = Line::default();
        let [first, second, third] = [1, 2, 3].map(ConnectionId);
        assert!(line.may_take(second, 5, 5, NOW) && !line.may_take(second, 6, 5, NOW));
        line.wait(first, 4, NOW);
        line.wait(second, 3, NOW);
        for (connection, most) in [(first, 9), (second, 5), (third, 2)] {
            assert!(line.may_take(connection, most, 9, NOW), "{connection:?}");
            assert!(!line.may_take(connection, most + 1, 9, NOW), "{connection:?}");
        }
        // It asks for less, and is still first.
        line.wait(first, 1, NOW);
        assert!(line.may_take(second, 8, 9, NOW) && !line.may_take(third, 6, 9, NOW));
        line.leave(first);
        assert!(line.may_take(third, 6, 9, NOW));
    }

    #[test]
    fn who_does_not_ask_again_holds_up_nobody() {
        let mut line = Line::default();
        let [first, second, third] = [1, 2, 3].map(ConnectionId);
        line.wait(first, 4, NOW);
        line.wait(second, 4, NOW + 10);
        let late = NOW + 1;
        assert!(line.may_take(second, 4, 4, late) && !line.may_take(third, 1, 4, late));
        assert!(line.may_take(third, 4, 4, late + 10));
    }
}
