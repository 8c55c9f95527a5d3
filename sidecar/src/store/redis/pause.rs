//! How long something that fails is left alone: the longer it has been failing, the longer.

use std::time::{Duration, Instant};

/// The shortest and the longest pause; half of it is random.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// How long it must have worked before its failures are forgotten: who is let in and thrown out again has not.
const STEADY: Duration = Duration::from_secs(5);

/// Since when it has been failing.
#[derive(Debug, Default)]
pub(super) struct Pause {
    failing: Option<(Instant, Instant)>,
    until: Option<Instant>,
}

impl Pause {
    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// It failed. Returns how long to leave it alone: a quarter of the time since it began to fail.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let (began, _) = *self.failing.get_or_insert((now, now));
        self.failing = Some((began, now));
        let pause = (now.duration_since(began) / 4).clamp(SHORTEST, LONGEST);
        let pause = pause.mul_f64(rand::random_range(0.5..=1.0));
        self.until = Some(now + pause);
        pause
    }

    /// It works.
    pub(super) fn works(&mut self, now: Instant) {
        self.failing.take_if(|(_, last)| now.duration_since(*last) >= STEADY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is tried within the first minute, and within the third.
    fn tries(works_between: bool) -> (usize, usize) {
        let (mut pause, begin) = (Pause::default(), Instant::now());
        let (mut now, mut tries) = (begin, Vec::new());
        while now < begin + Duration::from_secs(180) {
            tries.push(now.duration_since(begin).as_secs() / 60);
            let left_alone = pause.failed(now);
            assert!(pause.is_on(now) && left_alone <= LONGEST);
            now += left_alone;
            assert!(!pause.is_on(now));
            if works_between {
                pause.works(now);
            }
        }
        let within = |minute| tries.iter().filter(|at| **at == minute).count();
        (within(0), within(2))
    }

    #[test]
    fn it_is_tried_soon_and_then_more_and_more_seldom() {
        for works_between in [false, true] {
            let (first, third) = tries(works_between);
            assert!((15..70).contains(&first) && (12..26).contains(&third), "{first}, {third}");
        }
    }

    #[test]
    fn who_has_worked_for_a_while_is_tried_soon_again() {
        let (mut pause, begin) = (Pause::default(), Instant::now());
        pause.failed(begin);
        let late = begin + Duration::from_secs(100);
        assert!(pause.failed(late) > Duration::from_secs(2));
        pause.works(late + STEADY);
        assert!(pause.failed(late + STEADY) <= SHORTEST);
    }
}
