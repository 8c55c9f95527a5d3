//! Faults that may last: said when they begin and when they are over, and counted meanwhile.

use std::{
    fmt::Display,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

/// How long nothing must have failed before a fault is over: some things work while others fail.
const QUIET: Duration = Duration::from_secs(10);
/// How often a fault that goes on is said to, if it is another one by now.
const TELL: Duration = Duration::from_secs(60);

/// What failed how often, by what it was about.
pub(crate) static FAULTS: LazyLock<Family<About, Counter>> = LazyLock::new(Family::default);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct About {
    about: &'static str,
}

/// A fault while it lasts.
struct Fault {
    problem: String,
    failures: u64,
    began: Instant,
    last: Instant,
    told: Instant,
}

/// Something that may fail again and again.
pub(crate) struct Lasting {
    about: &'static str,
    failures: Counter,
    fault: Mutex<Option<Fault>>,
}

/// What is to be said.
#[derive(Debug, PartialEq, Eq)]
enum Say {
    Begins,
    IsOver { failures: u64, after: Duration },
}

impl Lasting {
    /// What `about` says stands in the log before the problem, and as a label in the metrics.
    pub(crate) fn new(about: &'static str) -> Self {
        let failures = FAULTS.get_or_create(&About { about }).clone();
        Self { about, failures, fault: Mutex::default() }
    }

    /// It failed.
    pub(crate) fn failed(&self, problem: impl Display) {
        let problem = problem.to_string();
        if self.note_failure(&problem, Instant::now()) == Some(Say::Begins) {
            tracing::error!("{}: {problem}", self.about);
        }
    }

    /// It works.
    pub(crate) fn works(&self) {
        if let Some(Say::IsOver { failures, after }) = self.note_success(Instant::now()) {
            let seconds = after.as_secs();
            tracing::info!("{}: works again, after {failures} failures in {seconds} s", self.about);
        }
    }

    fn note_failure(&self, problem: &str, now: Instant) -> Option<Say> {
        self.failures.inc();
        let mut present = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fault) = present.as_mut() {
            (fault.failures, fault.last) = (fault.failures + 1, now);
            let is_news = fault.problem != problem && now.duration_since(fault.told) >= TELL;
            if !is_news {
                return None;
            }
            (fault.problem, fault.told) = (problem.to_owned(), now);
        } else {
            let problem = problem.to_owned();
            *present = Some(Fault { problem, failures: 1, began: now, last: now, told: now });
        }
        Some(Say::Begins)
    }

    fn note_success(&self, now: Instant) -> Option<Say> {
        let mut present = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let over = present.take_if(|fault| now.duration_since(fault.last) >= QUIET)?;
        Some(Say::IsOver { failures: over.failures, after: over.last.duration_since(over.began) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_lasts_is_said_once_and_counted() {
        let lasting = Lasting::new("a test");
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(lasting.note_success(begin), None, "nothing was wrong");
        assert_eq!(lasting.note_failure("gone", at(0)), Some(Say::Begins));
        for second in 1..50 {
            assert_eq!(lasting.note_failure(["gone", "slow"][second as usize % 2], at(second)), None);
            assert_eq!(lasting.note_success(at(second)), None, "some of it works");
        }
        assert_eq!(lasting.note_failure("gone", at(70)), None, "the same as ever");
        assert_eq!(lasting.note_failure("refused", at(71)), Some(Say::Begins), "another one");
        assert_eq!(lasting.note_success(at(80)), None);
        let over = Say::IsOver { failures: 52, after: Duration::from_secs(71) };
        assert_eq!(lasting.note_success(at(81)), Some(over));
        assert_eq!(lasting.failures.get(), 52);
        assert_eq!(lasting.note_failure("gone", at(82)), Some(Say::Begins), "it is back");
    }
}
