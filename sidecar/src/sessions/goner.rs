//! Files that are gone: sessions that ended, or a directory that somebody emptied.
//!
//! That a session was left (login, logout) the filter sees and says. What else deletes a file: Odoo, when a
//! device is revoked; Odoo 19, which deletes all files of a rotated session and saves the newest again;
//! and whoever empties a directory, who deletes many and saves none.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use affinity::SessionKey;

/// How long a file must be gone. Odoo 19 deletes and saves within one request, on a busy machine too;
/// and files that are gone are counted together for as long.
const WINDOW: Duration = Duration::from_millis(800);
/// The fewest sessions that can be taken for all of a node's.
const FEWEST: usize = 4;
/// How often a verdict that waits is asked for.
const AGAIN: Duration = Duration::from_millis(200);

/// What is to be thought of a file that is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait(Duration),
    Ended,
    Lost,
}

#[derive(Default)]
pub(super) struct Goners {
    /// Since when sessions are gone that no verdict was spoken of.
    gone: HashMap<SessionKey, Instant>,
    /// Until when everything that is gone is taken for lost.
    losing_until: Option<Instant>,
}

impl Goners {
    /// A file of a session is gone.
    pub(super) fn gone(&mut self, key: SessionKey) {
        self.gone.entry(key).or_insert_with(Instant::now);
    }

    /// Judges a session whose files are gone; `sessions` are known on the node, this one included.
    pub(super) fn verdict(&mut self, key: SessionKey, folder_gone: bool, sessions: usize) -> Verdict {
        self.verdict_at(key, folder_gone, sessions, Instant::now())
    }

    fn verdict_at(&mut self, key: SessionKey, folder_gone: bool, sessions: usize, now: Instant) -> Verdict {
        let since = *self.gone.entry(key).or_insert(now);
        // Odoo never deletes a folder.
        if folder_gone || self.losing_until.is_some_and(|until| now < until) {
            return Verdict::Lost;
        }
        if now.saturating_duration_since(since) < WINDOW {
            return Verdict::Wait(AGAIN);
        }
        if self.gone.len() >= FEWEST && self.gone.len() * 2 > sessions {
            tracing::warn!("many sessions' files were deleted at once: they are put back");
            self.losing_until = Some(now + WINDOW * 4);
            return Verdict::Lost;
        }
        Verdict::Ended
    }

    /// A session was dealt with, or its files are back.
    pub(super) fn forget(&mut self, key: SessionKey) {
        self.gone.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> SessionKey {
        SessionKey::from([number; 16])
    }

    #[test]
    fn a_file_that_stays_away_has_ended() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        assert_eq!(goners.verdict_at(key(2), false, 2, now), Verdict::Wait(AGAIN));
        assert_eq!(goners.verdict_at(key(2), false, 2, now + WINDOW), Verdict::Ended);
    }

    #[test]
    fn an_emptied_directory_is_no_logout() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        (0..10).for_each(|number| goners.gone(key(number)));
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, 12, now), Verdict::Wait(AGAIN));
        }
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, 12, now + WINDOW * 2), Verdict::Lost);
            goners.forget(key(number));
        }
        assert_eq!(goners.verdict_at(key(11), true, 100, now), Verdict::Lost);
    }

    #[test]
    fn many_that_end_among_many_more_have_ended() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        (0..10).for_each(|number| goners.gone(key(number)));
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, 100, now + WINDOW * 2), Verdict::Ended);
            goners.forget(key(number));
        }
    }
}
