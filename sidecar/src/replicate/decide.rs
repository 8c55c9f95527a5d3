//! What is to be done about one file, given the disk, the store, and what both were when they agreed last.

use serde::{Deserialize, Serialize};

/// How directories of the same name are kept alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The latest change of a file wins everywhere; that it is deleted is one.
    Newest,
    /// Files that appear are put everywhere; nothing is changed or deleted elsewhere.
    Add,
}

/// Earlier states of a file that a version remembers.
const REMEMBERED: usize = 8;

/// A file's state: tells contents, modes and times apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct State {
    /// When it was changed, in nanoseconds since 1970. First: states are ordered by it.
    pub(super) modified_ns: i64,
    /// Of all that a file is.
    pub(super) digest: [u8; 16],
}

/// A file, or that it is gone, as it is published.
///
/// Versions are counted on from the version that its writer had, whatever clocks say: who changes what another
/// has just changed comes after it. Only changes that did not know of each other are ordered by their times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) number: u64,
    /// None: it is gone.
    pub(super) state: Option<State>,
    /// What it was before: a disk that has one of these is behind.
    pub(super) before: Vec<State>,
}

impl Version {
    /// The version after another, or the first.
    pub(super) fn after(last: Option<&Self>, state: Option<State>) -> Self {
        let number = last.map_or(0, |last| last.number).saturating_add(1);
        let before = last.iter().flat_map(|last| last.state.iter().chain(&last.before));
        Self { number, state, before: before.take(REMEMBERED).copied().collect() }
    }

    /// What orders versions in the store.
    pub(super) fn stamp(&self) -> String {
        // One that is gone loses to a change that did not know of it.
        let time = self.state.map_or(0, |state| u64::try_from(state.modified_ns).unwrap_or_default());
        format!("{:016x}{time:016x}", self.number)
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// What the store has is known now, and the disk stays as it is.
    Know,
    /// The disk is to become what the store has.
    Take,
    /// The store is to get what the disk has, as the version after this one.
    Publish(Option<Version>),
}

/// Decides. `known` is what disk and store agreed on last, `store` what it has, if that was heard of.
pub(super) fn decide(
    mode: Mode,
    disk: Option<&State>,
    known: Option<&Version>,
    store: Option<&Version>,
) -> Step {
    let news = store.filter(|store| known.is_none_or(|known| store.stamp() > known.stamp()));
    match mode {
        Mode::Add => add(disk, known, news),
        Mode::Newest => newest(disk, known, news),
    }
}

fn add(disk: Option<&State>, known: Option<&Version>, news: Option<&Version>) -> Step {
    match (disk, known, news) {
        // Never seen here; else somebody deleted it here.
        (None, None, Some(news)) if news.state.is_some() => Step::Take,
        (Some(_), _, Some(news)) if news.state.is_none() => Step::Publish(Some(news.clone())),
        (_, _, Some(_)) => Step::Know,
        (Some(_), None, None) => Step::Publish(None),
        (_, _, None) => Step::Nothing,
    }
}

fn newest(disk: Option<&State>, known: Option<&Version>, news: Option<&Version>) -> Step {
    let changed = disk != known.and_then(|known| known.state.as_ref());
    let Some(news) = news else {
        return if changed { Step::Publish(known.cloned()) } else { Step::Nothing };
    };
    if disk == news.state.as_ref() {
        return Step::Know;
    }
    match (disk, news.state.as_ref()) {
        _ if !changed => Step::Take,
        (Some(disk), _) if news.before.contains(disk) => Step::Take,
        // Both were changed: a change wins over a deletion, and else the later one.
        (None, _) => Step::Take,
        (Some(disk), Some(there)) if there > disk => Step::Take,
        (Some(_), _) => Step::Publish(Some(news.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(time: i64) -> State {
        State { modified_ns: time, digest: [time as u8; 16] }
    }

    /// A version of a file that had these states, the last of them first.
    fn version(number: u64, now: i64, before: &[i64]) -> Version {
        let state_of = |time: i64| (time != 0).then(|| state(time));
        Version {
            number,
            state: state_of(now),
            before: before.iter().filter_map(|time| state_of(*time)).collect(),
        }
    }

    #[test]
    fn what_is_done_follows_a_table() {
        use Mode::{Add, Newest};
        let (one, two, gone) = (version(1, 10, &[]), version(2, 20, &[10]), version(2, 0, &[10]));
        let again = version(2, 15, &[10]);
        let (know, take, nothing) = (Step::Know, Step::Take, Step::Nothing);
        let publish = |after: Option<&Version>| Step::Publish(after.cloned());
        // The mode; the disk; what was known; the store.
        let table = [
            (Newest, 0, None, None, nothing.clone()),
            (Newest, 10, None, None, publish(None)),
            (Newest, 10, Some(&one), None, nothing.clone()),
            (Newest, 10, Some(&one), Some(&one), nothing.clone()),
            (Newest, 12, Some(&one), None, publish(Some(&one))),
            (Newest, 0, Some(&one), None, publish(Some(&one))),
            (Newest, 0, Some(&one), Some(&one), publish(Some(&one))),
            (Newest, 0, None, Some(&one), take.clone()),
            (Newest, 10, Some(&one), Some(&two), take.clone()),
            (Newest, 10, Some(&one), Some(&gone), take.clone()),
            // What the store had before, whatever clocks say; and what it never had.
            (Newest, 10, None, Some(&two), take.clone()),
            (Newest, 10, None, Some(&gone), take.clone()),
            (Newest, 12, None, Some(&two), take.clone()),
            (Newest, 30, None, Some(&two), publish(Some(&two))),
            (Newest, 12, None, Some(&gone), publish(Some(&gone))),
            // Two changes that did not know of each other.
            (Newest, 17, Some(&one), Some(&again), publish(Some(&again))),
            (Newest, 12, Some(&one), Some(&again), take.clone()),
            (Newest, 0, Some(&one), Some(&two), take.clone()),
            (Newest, 12, Some(&one), Some(&gone), publish(Some(&gone))),
            // The same on both sides.
            (Newest, 20, Some(&one), Some(&two), know.clone()),
            (Newest, 0, Some(&one), Some(&gone), know.clone()),
            (Newest, 0, None, Some(&gone), know.clone()),
            // A store that forgot has older versions.
            (Newest, 20, Some(&two), Some(&one), nothing.clone()),
            (Add, 0, None, Some(&one), take.clone()),
            (Add, 10, None, None, publish(None)),
            (Add, 12, None, Some(&one), know.clone()),
            (Add, 10, Some(&one), Some(&two), know.clone()),
            (Add, 0, Some(&one), None, nothing.clone()),
            (Add, 0, Some(&one), Some(&two), know.clone()),
            (Add, 12, Some(&one), None, nothing),
            (Add, 10, Some(&one), Some(&gone), publish(Some(&gone))),
            (Add, 0, None, Some(&gone), know),
        ];
        for (mode, disk, known, store, expected) in table {
            let on_disk = (disk != 0).then(|| state(disk));
            let step = decide(mode, on_disk.as_ref(), known, store);
            assert_eq!(step, expected, "{mode:?}, {disk}, {known:?}, {store:?}");
        }
    }

    #[test]
    fn versions_are_ordered_by_number_then_time_and_remember_what_was() {
        let mut last = Version::after(None, Some(state(1_000)));
        for time in (0..20).rev() {
            let next = Version::after(Some(&last), (time != 7).then(|| state(time + 1)));
            assert!(next.stamp() > last.stamp(), "{time}");
            last = next;
        }
        assert_eq!((last.number, last.before.len()), (21, REMEMBERED));
        assert_eq!(last.before[0], state(2));
        assert!(version(3, 9, &[]).stamp() > version(3, 8, &[]).stamp());
        assert!(version(3, 1, &[]).stamp() > version(3, 0, &[]).stamp(), "a change wins over a deletion");
        assert!(Version { number: 1 << 60, ..last }.stamp() > version(3, i64::MAX, &[]).stamp());
    }
}
