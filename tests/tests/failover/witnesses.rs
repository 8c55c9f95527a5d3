//! People who work all the time, and what they notice.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use harness::browser::{Answer, Browser, Connections, Method};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// What a crowd noticed.
#[derive(Default)]
pub struct Notices {
    pub requests: usize,
    pub failed_gets: usize,
    /// POSTs without a good answer: they may have run, so nobody repeats them.
    pub failed_posts: usize,
    pub wrong_user: usize,
    pub logouts: usize,
    /// Times that somebody was shown the login page, and was logged in again at the next attempt.
    pub detours: usize,
    gaps: Vec<Duration>,
    /// Session ids that were logged out.
    pub dead: Vec<String>,
    /// The sessions of those who were logged out, and when they began.
    pub lost: Vec<(String, Instant)>,
    /// Who is still logged in, with their ids.
    pub alive: Vec<(String, String)>,
    /// What went wrong, to be told.
    pub stories: Vec<String>,
}

impl Notices {
    fn story(&mut self, text: String) {
        if self.stories.len() < 12 {
            self.stories.push(text);
        }
    }

    /// How long a share of the GETs took at most.
    pub fn gap(&mut self, share: f64) -> Duration {
        self.gaps.sort();
        let last = self.gaps.len().saturating_sub(1);
        self.gaps.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}

/// People at work.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    notices: Arc<Mutex<Notices>>,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

impl Crowd {
    /// Has `count` people log in through `connections` at a server, and work.
    pub async fn start(
        connections: &Connections,
        server: std::net::SocketAddr,
        count: usize,
        seed: u64,
    ) -> Result<Self> {
        let (stop, notices) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Notices>>::default());
        let mut workers = Vec::new();
        for number in 0..count {
            let mut person = Person {
                browser: Browser::new(connections.clone(), server),
                login: format!("user{number}"),
                random: StdRng::seed_from_u64(seed ^ (number as u64) << 20),
                logged_in: false,
                since: Instant::now(),
            };
            // As if everybody came from another office: ip_hash looks at the first three numbers.
            person.browser.headers = vec![("x-test-ip", format!("10.{}.{}.7", number % 200, number / 200))];
            person.log_in(&notices).await;
            let (stop, notices) = (Arc::clone(&stop), Arc::clone(&notices));
            workers.push(tokio::spawn(async move { person.work(&stop, &notices).await }));
        }
        Ok(Self { stop, notices, workers })
    }

    /// Lets everybody finish, and tells what they noticed.
    pub async fn end(self) -> Result<Notices> {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await?;
        }
        Ok(std::mem::take(&mut self.notices.lock().expect("no panic")))
    }
}

struct Person {
    browser: Browser,
    login: String,
    random: StdRng,
    logged_in: bool,
    /// When their session began.
    since: Instant,
}

impl Person {
    async fn work(&mut self, stop: &AtomicBool, notices: &Mutex<Notices>) {
        while !stop.load(Ordering::Relaxed) {
            if !self.logged_in {
                self.log_in(notices).await;
            }
            if self.logged_in {
                match self.random.random_range(0..100) {
                    0..72 => self.read(notices).await,
                    72..90 => self.write(notices).await,
                    90..96 => self.log_out(notices).await,
                    _ => self.listen(notices).await,
                }
            }
            tokio::time::sleep(Duration::from_millis(self.random.random_range(100..400))).await;
        }
        if let (true, Some(sid)) = (self.logged_in, self.browser.sid.clone()) {
            notices.lock().expect("no panic").alive.push((self.login.clone(), sid));
        }
    }

    async fn request(&mut self, method: Method, path: &str, kind: &str, body: String) -> Result<Answer> {
        self.browser.request(method, path, &[("content-type", kind)], body).await
    }

    async fn log_in(&mut self, notices: &Mutex<Notices>) {
        self.browser.sid = None;
        let Ok(page) = self.request(Method::GET, "/web/login", "", String::new()).await else { return };
        let text = page.text();
        let token = text.split("name=\"csrf_token\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
        let Some(token) = token else { return };
        let form = format!("csrf_token={token}&login={0}&password=pw-{0}&redirect=/odoo", self.login);
        let kind = "application/x-www-form-urlencoded";
        let answer = self.request(Method::POST, "/web/login", kind, form).await;
        self.since = Instant::now();
        // Who is not logged in tries again.
        self.logged_in = answer.is_ok_and(|answer| answer.status == 303 && answer.login() == self.login);
        notices.lock().expect("no panic").requests += 2;
    }

    async fn read(&mut self, notices: &Mutex<Notices>) {
        let asked = Instant::now();
        let answer = self.request(Method::GET, "/odoo", "", String::new()).await;
        notices.lock().expect("no panic").gaps.push(asked.elapsed());
        match answer {
            Ok(answer) if answer.status < 500 => self.check(&answer, "GET", notices).await,
            failed => {
                let mut notices = notices.lock().expect("no panic");
                (notices.requests, notices.failed_gets) = (notices.requests + 1, notices.failed_gets + 1);
                notices.story(format!("GET of {}: {}", self.login, outcome(&failed)));
            }
        }
    }

    async fn write(&mut self, notices: &Mutex<Notices>) {
        let (path, kind, body) = match self.random.random_range(0..4) {
            0 => {
                ("/web/upload", "application/octet-stream", "x".repeat(self.random.random_range(1..200_000)))
            }
            _ => {
                let call = r#"{"jsonrpc":"2.0","method":"call","id":1,"params":{"model":"res.partner","method":"read","args":[[1]],"kwargs":{}}}"#;
                ("/web/dataset/call_kw", "application/json", call.to_owned())
            }
        };
        match self.request(Method::POST, path, kind, body).await {
            Ok(answer) if answer.status < 500 => self.check(&answer, path, notices).await,
            _ => {
                let mut notices = notices.lock().expect("no panic");
                (notices.requests, notices.failed_posts) = (notices.requests + 1, notices.failed_posts + 1);
            }
        }
    }

    async fn log_out(&mut self, notices: &Mutex<Notices>) {
        let before = self.browser.sid.clone();
        let answer = self.request(Method::GET, "/web/session/logout", "", String::new()).await;
        let mut notices = notices.lock().expect("no panic");
        notices.requests += 1;
        self.logged_in = false;
        match answer {
            // The answer came, so it is believed.
            Ok(answer) if answer.status < 500 && self.browser.sid != before => notices.dead.extend(before),
            Ok(answer) if answer.status < 500 => {}
            failed => {
                notices.failed_gets += 1;
                notices.story(format!("logout of {}: {}", self.login, outcome(&failed)));
            }
        }
    }

    async fn listen(&mut self, notices: &Mutex<Notices>) {
        let heard = self.browser.websocket("hello").await;
        let mut notices = notices.lock().expect("no panic");
        notices.requests += 1;
        match heard {
            Ok(echo) if echo.ends_with(&format!(":{}:hello", self.login)) => {}
            Ok(echo) => {
                let as_nobody = echo.ends_with("::hello") || echo.contains(":None:");
                notices.wrong_user += usize::from(!as_nobody);
                notices.story(format!("websocket of {}: {echo}", self.login));
            }
            // A browser opens its websocket again by itself.
            Err(_) => notices.failed_posts += 1,
        }
    }

    async fn check(&mut self, answer: &Answer, what: &str, notices: &Mutex<Notices>) {
        notices.lock().expect("no panic").requests += 1;
        if answer.login() == self.login {
            return;
        }
        let sid = self.browser.sid.clone();
        let mut is_back = false;
        if answer.login().is_empty() {
            // Whoever is shown the login page tries once more.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let again = self.request(Method::GET, "/odoo", "", String::new()).await;
            is_back = again.is_ok_and(|again| again.login() == self.login);
        }
        let mut notices = notices.lock().expect("no panic");
        match answer.login() {
            "" if is_back => notices.detours += 1,
            "" => {
                notices.logouts += 1;
                notices.lost.extend(sid.map(|sid| (sid, self.since)));
                self.logged_in = false;
            }
            _ => notices.wrong_user += 1,
        }
        notices.story(format!(
            "{what} of {}: {} at {} as {:?}{}",
            self.login,
            answer.status,
            answer.node(),
            answer.login(),
            if is_back { ", and in again" } else { "" }
        ));
    }
}

fn outcome(answer: &Result<Answer>) -> String {
    match answer {
        Ok(answer) => format!("{} {}", answer.status, answer.text().chars().take(60).collect::<String>()),
        Err(error) => format!("{error:#}"),
    }
}
