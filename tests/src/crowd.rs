//! People who work while something happens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::person::Person;

/// What they have done so far.
#[derive(Default)]
struct Work {
    stop: AtomicBool,
    requests: AtomicUsize,
    slowest_us: AtomicU64,
}

/// Logged-in people, each sending one request after the other.
pub struct Crowd {
    work: Arc<Work>,
    workers: Vec<JoinHandle<Result<Person>>>,
}

impl Crowd {
    /// Has them work until they are told to stop, each with a pause after every request.
    pub fn start(people: Vec<Person>, pause: Duration) -> Self {
        let work = Arc::new(Work::default());
        let start = |mut person: Person| {
            let work = Arc::clone(&work);
            tokio::spawn(async move {
                // Not all at once.
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.0..1.0))).await;
                while !work.stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    person.works().await?;
                    let took = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
                    work.slowest_us.fetch_max(took, Ordering::Relaxed);
                    work.requests.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
                Ok(person)
            })
        };
        let workers = people.into_iter().map(start).collect();
        Self { work, workers }
    }

    /// How many requests were answered so far.
    pub fn requests(&self) -> usize {
        self.work.requests.load(Ordering::Relaxed)
    }

    /// The longest that an answer took so far.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.work.slowest_us.load(Ordering::Relaxed))
    }

    /// Has them end.
    ///
    /// # Errors
    /// If a request of one of them failed, or was served elsewhere than where they are logged in.
    pub async fn stop(self) -> Result<Vec<Person>> {
        self.work.stop.store(true, Ordering::Relaxed);
        let mut people = Vec::new();
        for worker in self.workers {
            people.push(worker.await??);
        }
        Ok(people)
    }
}
