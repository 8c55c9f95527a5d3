//! People who work all the time, and what they notice.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use affinity::SessionKey;
use anyhow::Result;
use futures::{StreamExt, stream};
use harness::browser::{Answer, Browser, Connections, Method};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::JoinHandle;

use crate::{
    bus::{Bus, Jar},
    notices::{Notices, Session, Trouble, Wrong},
};

/// One of so many holds a websocket open.
const SOCKETS: usize = 6;
/// How many click as fast as they can read; more than that take more time each, so that servers have as much
/// to do.
const BUSY: usize = 60;
/// How many log in at once before anything happens.
const AT_ONCE: usize = 8;

/// People who work whatever happens, and notice what goes wrong.
pub struct Witnesses {
    pub notices: Arc<Mutex<Notices>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Witnesses {
    /// Has `count` people log in through `connections` at a server, and work.
    pub async fn start(
        connections: &Connections,
        server: std::net::SocketAddr,
        count: usize,
        seed: u64,
    ) -> Result<Self> {
        let (stop, notices) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Notices>>::default());
        let mut workers = Vec::new();
        let pace = (count as f64 / BUSY as f64).max(1.0);
        let mut people = Vec::new();
        for number in 0..count {
            let mut browser = Browser::new(connections.clone(), server);
            // As if everybody came from another office: ip_hash looks at the first three numbers.
            browser.headers = vec![("x-test-ip", format!("10.{}.{}.7", number % 200, number / 200))];
            let (login, seed) = (format!("user{number}"), seed ^ (number as u64) << 20);
            let mut jar = Arc::default();
            if number % SOCKETS == 0 {
                let bus = Bus::new(browser.clone(), &login, &notices, seed + 1);
                jar = Arc::clone(&bus.jar);
                let stop = Arc::clone(&stop);
                workers.push(tokio::spawn(async move { bus.hold(&stop).await }));
            }
            let random = StdRng::seed_from_u64(seed);
            let session = Session::now(None);
            people.push(Person { browser, login, random, jar, pace, logged_in: false, session });
        }
        let log_in = async |mut person: Person| {
            person.log_in(&notices).await;
            person
        };
        let people: Vec<Person> = stream::iter(people).map(log_in).buffer_unordered(AT_ONCE).collect().await;
        for mut person in people {
            let (stop, notices) = (Arc::clone(&stop), Arc::clone(&notices));
            workers.push(tokio::spawn(async move { person.work(&stop, &notices).await }));
        }
        Ok(Self { notices, stop, workers })
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
    /// For the page that holds a websocket open.
    jar: Arc<Mutex<Jar>>,
    /// How much longer than usual a page is looked at, as a factor.
    pace: f64,
    logged_in: bool,
    session: Session,
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
            let read = Duration::from_millis(self.random.random_range(100..400));
            tokio::time::sleep(read.mul_f64(self.pace)).await;
        }
        if let (true, Some(sid)) = (self.logged_in, self.browser.sid.clone()) {
            notices.lock().expect("no panic").alive.push((self.login.clone(), sid));
        }
    }

    async fn request(&mut self, method: Method, path: &str, kind: &str, body: String) -> Result<Answer> {
        let answer = self.browser.request(method, path, &[("content-type", kind)], body).await;
        self.share();
        answer
    }

    /// Shares the cookie.
    fn share(&self) {
        self.jar.lock().expect("no panic").sid = self.browser.sid.clone().filter(|_| self.logged_in);
    }

    /// A GET without a good answer.
    fn failed(&self, what: &str, answer: &Result<Answer>, notices: &Mutex<Notices>) {
        let mut notices = notices.lock().expect("no panic");
        notices.requests += 1;
        notices.troubles.push(Trouble::new(Wrong::Get, answer.as_ref().ok(), self.session.clone()));
        notices.story(format!("{what} of {}: {}", self.login, outcome(answer)));
    }

    async fn log_in(&mut self, notices: &Mutex<Notices>) {
        self.browser.sid = None;
        let page = match self.request(Method::GET, "/web/login", "", String::new()).await {
            Ok(page) if page.status < 500 => page.text(),
            failed => return self.failed("login page", &failed, notices),
        };
        let token = page.split("name=\"csrf_token\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
        let Some(token) = token else { return };
        let form = format!("csrf_token={token}&login={0}&password=pw-{0}&redirect=/odoo", self.login);
        let kind = "application/x-www-form-urlencoded";
        let answer = self.request(Method::POST, "/web/login", kind, form).await;
        self.session = Session::now(answer.as_ref().ok());
        // Who is not logged in tries again.
        self.logged_in = answer.is_ok_and(|answer| answer.status == 303 && answer.login() == self.login);
        self.jar.lock().expect("no panic").logins += 1;
        self.share();
        let mut notices = notices.lock().expect("no panic");
        notices.requests += 2;
        notices.failed_posts += usize::from(!self.logged_in);
    }

    async fn read(&mut self, notices: &Mutex<Notices>) {
        let asked = Instant::now();
        let answer = self.request(Method::GET, "/odoo", "", String::new()).await;
        notices.lock().expect("no panic").gap(asked.elapsed());
        match answer {
            Ok(answer) if answer.status < 500 => self.check(&answer, "GET", notices).await,
            failed => self.failed("GET", &failed, notices),
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
            // JSON routes tell errors with status 200.
            Ok(answer) if answer.status < 500 && !answer.text().contains("Odoo Server Error") => {
                self.check(&answer, path, notices).await;
            }
            _ => {
                let mut notices = notices.lock().expect("no panic");
                (notices.requests, notices.failed_posts) = (notices.requests + 1, notices.failed_posts + 1);
            }
        }
    }

    async fn log_out(&mut self, notices: &Mutex<Notices>) {
        let before = self.browser.sid.clone();
        self.logged_in = false;
        self.share();
        match self.request(Method::GET, "/web/session/logout", "", String::new()).await {
            Ok(answer) if answer.status < 500 => {
                let mut notices = notices.lock().expect("no panic");
                notices.requests += 1;
                // The answer came, so it is believed.
                if self.browser.sid != before {
                    notices.dead.extend(before.map(|sid| (sid, Session::now(Some(&answer)))));
                }
            }
            failed => self.failed("logout", &failed, notices),
        }
    }

    async fn listen(&mut self, notices: &Mutex<Notices>) {
        let heard = self.browser.websocket("hello").await;
        let mut notices = notices.lock().expect("no panic");
        notices.requests += 1;
        match heard {
            Ok(echo) if echo.ends_with(&format!(":{}:hello", self.login)) => {}
            Ok(echo) => {
                notices.wrong_user += usize::from(!echo.ends_with("::hello"));
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
                notices.troubles.push(Trouble::new(Wrong::Logout, Some(answer), self.session.clone()));
                self.logged_in = false;
                self.share();
            }
            _ => notices.wrong_user += 1,
        }
        let key = self.browser.sid.as_ref().map(|sid| SessionKey::of_session_id(sid.as_bytes()).to_string());
        notices.story(format!(
            "{what} of {} ({}), logged in at {} {:.1?} ago: {} at {} as {:?}{}",
            self.login,
            key.unwrap_or_default(),
            self.session.node,
            self.session.since.elapsed(),
            answer.status,
            answer.node(),
            answer.login(),
            if is_back { ", and in again" } else { "" }
        ));
    }
}

fn outcome(answer: &Result<Answer>) -> String {
    match answer {
        Ok(answer) => {
            let text: String = answer.text().chars().take(60).collect();
            format!("{} {} at {}", answer.status, text.replace('\n', " "), answer.node())
        }
        Err(error) => format!("{error:#}"),
    }
}
