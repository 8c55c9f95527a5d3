//! Files that are gone: sessions that ended, or a directory that somebody emptied.
//!
//! That a session was left (login, logout) the filter sees and says. What else deletes a file: Odoo, when a
//! device is revoked; Odoo 19, which deletes all files of a rotated session and saves the newest again;
//! and whoever empties a directory, who deletes most of what there is at once, or the folders as well.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use affinity::SessionKey;

/// How long a file must be gone. Odoo 19 deletes and saves within one request, on a busy machine too;
/// and files that go within as long go together.
const WINDOW: Duration = Duration::from_millis(800);
/// The fewest sessions that can be taken for most of a node's.
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
    /// Those that went not long ago, back since or not.
    recent: VecDeque<(Instant, SessionKey)>,
    /// From when until when everything that goes is taken for lost.
    losing: Option<(Instant, Instant)>,
}

impl Goners {
    /// A file of a session is gone; `sessions` were known on the node.
    pub(super) fn gone(&mut self, key: SessionKey, sessions: usize) {
        self.gone_at(key, sessions, Instant::now());
    }

    fn gone_at(&mut self, key: SessionKey, sessions: usize, now: Instant) {
        while self.recent.front().is_some_and(|(then, _)| now.saturating_duration_since(*then) > WINDOW) {
            self.recent.pop_front();
        }
        // Sessions are counted and not files: one that is being rotated has several, which all go at once.
        if let Entry::Vacant(place) = self.gone.entry(key) {
            place.insert(now);
            self.recent.push_back((now, key));
        }
        let is_most = |gone: usize| gone >= FEWEST && gone * 2 > sessions;
        let still_gone = || self.recent.iter().filter(|(then, key)| self.gone.get(key) == Some(then)).count();
        if is_most(self.recent.len()) && is_most(still_gone()) {
            self.lose(now);
        }
    }

    fn lose(&mut self, now: Instant) {
        if self.losing.is_none_or(|(_, until)| until < now) {
            tracing::warn!("many sessions' files were deleted at once: they are put back");
        }
        self.losing = Some((now.checked_sub(WINDOW).unwrap_or(now), now + WINDOW * 4));
    }

    /// Judges a session whose files are gone.
    pub(super) fn verdict(&mut self, key: SessionKey, folder_gone: bool) -> Verdict {
        self.verdict_at(key, folder_gone, Instant::now())
    }

    fn verdict_at(&mut self, key: SessionKey, folder_gone: bool, now: Instant) -> Verdict {
        let since = *self.gone.entry(key).or_insert(now);
        // Odoo never deletes a folder.
        if folder_gone {
            self.lose(now);
        }
        if self.losing.is_some_and(|(from, until)| (from..until).contains(&since)) {
            return Verdict::Lost;
        }
        if now.saturating_duration_since(since) < WINDOW {
            return Verdict::Wait(AGAIN);
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
        goners.gone_at(key(2), 2, now);
        assert_eq!(goners.verdict_at(key(2), false, now), Verdict::Wait(AGAIN));
        assert_eq!(goners.verdict_at(key(2), false, now + WINDOW), Verdict::Ended);
    }

    #[test]
    fn an_emptied_directory_is_no_logout() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        (0..10).for_each(|number| goners.gone_at(key(number), 12, now));
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, now + WINDOW * 2), Verdict::Lost);
            goners.forget(key(number));
        }
        // Long after, a logout is one again.
        goners.gone_at(key(20), 12, now + WINDOW * 9);
        assert_eq!(goners.verdict_at(key(20), false, now + WINDOW * 10), Verdict::Ended);
    }

    #[test]
    fn what_is_rotated_or_logged_out_is_no_emptied_directory() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        // Two files each of three sessions, of seven in all.
        for number in [0, 0, 1, 1, 2, 2] {
            goners.gone_at(key(number), 7, now);
        }
        assert_eq!(goners.verdict_at(key(0), false, now), Verdict::Wait(AGAIN));
        // Sessions that are back, or have ended by another's word, count no more.
        for number in 0..20 {
            goners.gone_at(key(number), 7, now);
            goners.forget(key(number));
        }
        goners.gone_at(key(30), 7, now);
        assert_eq!(goners.verdict_at(key(30), false, now + WINDOW), Verdict::Ended);
        // Those that go together and stay away do.
        (40..44).for_each(|number| goners.gone_at(key(number), 7, now + WINDOW * 2));
        assert_eq!(goners.verdict_at(key(40), false, now + WINDOW * 2), Verdict::Lost);
    }

    #[test]
    fn where_folders_go_nothing_has_ended() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        assert_eq!(goners.verdict_at(key(1), true, now), Verdict::Lost);
        // Of another folder, which Odoo has made anew already.
        assert_eq!(goners.verdict_at(key(2), false, now), Verdict::Lost);
    }

    #[test]
    fn many_that_end_one_after_another_have_ended() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        // Also if nobody can be told for a while.
        (0..10).for_each(|number| goners.gone_at(key(number), 12, now + WINDOW * u32::from(number)));
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, now + WINDOW * 20), Verdict::Ended);
        }
        (20..30).for_each(|number| goners.gone_at(key(number), 100, now + WINDOW * 30));
        assert_eq!(goners.verdict_at(key(20), false, now + WINDOW * 31), Verdict::Ended);
    }
}
