//! A websocket that a browser holds open all the time, as Odoo's bus client does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::Notices;
use crate::browser::Browser;

/// How often something is said.
const EVERY: Duration = Duration::from_millis(300);
/// How long after everybody else has ended one that broke may still take.
const LAST: Duration = Duration::from_secs(20);

/// The cookie that a person's pages share.
#[derive(Clone, Default)]
pub struct Jar {
    /// None while they are not logged in.
    pub sid: Option<String>,
    /// How often they logged in.
    pub logins: usize,
}

/// A page that holds a websocket open.
pub struct Bus {
    pub browser: Browser,
    pub login: String,
    pub jar: Arc<Mutex<Jar>>,
    pub notices: Arc<Mutex<Notices>>,
    pub random: StdRng,
    /// Since when the websocket is not open that was open in this session.
    broken: Option<Instant>,
}

impl Bus {
    pub fn new(browser: Browser, login: &str, notices: &Arc<Mutex<Notices>>, seed: u64) -> Self {
        Self {
            browser,
            login: login.to_owned(),
            jar: Arc::default(),
            notices: Arc::clone(notices),
            random: StdRng::seed_from_u64(seed),
            broken: None,
        }
    }

    /// Holds it open until it is to stop, and then until it is open.
    pub async fn hold(mut self, stop: &AtomicBool) {
        let mut logins = 0;
        let mut stopped = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                let since = *stopped.get_or_insert_with(Instant::now);
                if self.broken.is_none() || since.elapsed() > LAST {
                    break;
                }
            }
            let jar = self.jar();
            if jar.logins != logins || jar.sid.is_none() {
                // Nobody waits for what ended with its session.
                (logins, self.broken) = (jar.logins, None);
            }
            if let Some(sid) = jar.sid {
                self.browser.sid = Some(sid);
                self.hold_one(logins, stop).await;
            }
            tokio::time::sleep(Duration::from_millis(self.random.random_range(100..400))).await;
        }
        self.notices.lock().expect("no panic").sockets.closed += usize::from(self.broken.is_some());
    }

    /// Holds one open until it breaks.
    async fn hold_one(&mut self, logins: usize, stop: &AtomicBool) {
        let Ok(mut socket) = self.browser.open_websocket().await else { return };
        let mut was_open = false;
        while self.is_in(logins) {
            let asked = Instant::now();
            let heard = socket.say("hello").await;
            let right = format!(":{}:hello", self.login);
            match heard {
                Ok(echo) if echo.ends_with(&right) => {
                    was_open = true;
                    let mut notices = self.notices.lock().expect("no panic");
                    notices.sockets.echoes += 1;
                    notices.sockets.slowest = notices.sockets.slowest.max(asked.elapsed());
                    if let Some(since) = self.broken.take() {
                        notices.sockets.open_again(since.elapsed());
                    }
                }
                Ok(echo) if !echo.ends_with("::hello") => {
                    let mut notices = self.notices.lock().expect("no panic");
                    notices.wrong_user += 1;
                    notices.story(format!("websocket of {}: {echo}", self.login));
                    return;
                }
                // It broke, or is nobody's: the session is not there yet.
                _ => {
                    if was_open && self.is_in(logins) {
                        self.broken = Some(asked);
                        self.notices.lock().expect("no panic").sockets.breaks += 1;
                    }
                    return;
                }
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn jar(&self) -> Jar {
        self.jar.lock().expect("no panic").clone()
    }

    fn is_in(&self, logins: usize) -> bool {
        let jar = self.jar();
        jar.sid.is_some() && jar.logins == logins
    }
}
