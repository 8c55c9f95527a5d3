//! People who work all the time, and what they notice.

mod aftermath;
mod bus;
mod notices;

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
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::JoinHandle;

use self::bus::{Bus, Jar};
pub use self::{
    aftermath::{lost, risen},
    notices::{Notices, Session, Sockets, Trouble, Wrong, at},
};
use crate::browser::{Answer, Browser, Connections, Method};

/// One of so many holds a websocket open.
const SOCKETS: usize = 6;
/// How many click as fast as they can read; more than that take more time each, so that servers have as much
/// to do.
const BUSY: usize = 60;
/// How many log in at once before anything happens.
const AT_ONCE: usize = 8;

/// How they work.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How many there are.
    pub people: usize,
    /// How many of them never log out.
    pub settled: usize,
    /// What they do by chance.
    pub seed: u64,
}

/// People who work whatever happens, and notice what goes wrong.
pub struct Witnesses {
    pub notices: Arc<Mutex<Notices>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Witnesses {
    /// Has people log in through `connections` at a server, and work.
    ///
    /// # Errors
    /// Never; who cannot log in notes that.
    pub async fn start(
        connections: &Connections,
        server: std::net::SocketAddr,
        habits: Habits,
    ) -> Result<Self> {
        let (stop, notices) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Notices>>::default());
        let mut workers = Vec::new();
        let pace = (habits.people as f64 / BUSY as f64).max(1.0);
        let mut people = Vec::new();
        for number in 0..habits.people {
            let mut browser = Browser::new(connections.clone(), server);
            // As if everybody came from another office: ip_hash looks at the first three numbers.
            browser.headers = vec![("x-test-ip", format!("10.{}.{}.7", number % 200, number / 200))];
            let (login, seed) = (format!("user{number}"), habits.seed ^ (number as u64) << 20);
            let mut jar = Arc::default();
            if number % SOCKETS == 0 {
                let bus = Bus::new(browser.clone(), &login, &notices, seed + 1);
                jar = Arc::clone(&bus.jar);
                let stop = Arc::clone(&stop);
                workers.push(tokio::spawn(async move { bus.hold(&stop).await }));
            }
            let random = StdRng::seed_from_u64(seed);
            let (session, settled) = (Session::now(None), number < habits.settled);
            let node = String::new();
            people.push(Person {
                browser,
                login,
                random,
                jar,
                pace,
                settled,
                logged_in: false,
                session,
                node,
            });
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
    /// Never logs out.
    settled: bool,
    logged_in: bool,
    session: Session,
    /// The node that answered last in this session; none yet: empty.
    node: String,
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
                    90..96 if !self.settled => self.log_out(notices).await,
                    _ => self.listen(notices).await,
                }
            }
            let read = Duration::from_millis(self.random.random_range(100..400));
            tokio::time::sleep(read.mul_f64(self.pace)).await;
        }
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: String,
        notices: &Mutex<Notices>,
    ) -> Result<Answer> {
        let answer = self.browser.request(method, path, &[("content-type", kind)], body).await;
        self.share(notices);
        answer
    }

    /// Shares the cookie.
    fn share(&self, notices: &Mutex<Notices>) {
        let sid = self.browser.sid.clone().filter(|_| self.logged_in);
        notices.lock().expect("no panic").uses(&self.login, sid.as_deref());
        self.jar.lock().expect("no panic").sid = sid;
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
        let page = match self.request(Method::GET, "/web/login", "", String::new(), notices).await {
            Ok(page) if page.status < 500 => page.text(),
            failed => return self.failed("login page", &failed, notices),
        };
        let token = page.split("name=\"csrf_token\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
        let Some(token) = token else { return };
        let form = format!("csrf_token={token}&login={0}&password=pw-{0}&redirect=/odoo", self.login);
        let kind = "application/x-www-form-urlencoded";
        let answer = self.request(Method::POST, "/web/login", kind, form, notices).await;
        self.session = Session::now(answer.as_ref().ok());
        self.node.clone_from(&self.session.node);
        let said = outcome(&answer);
        // Who is not logged in tries again.
        self.logged_in = answer.is_ok_and(|answer| answer.status == 303 && answer.login() == self.login);
        self.jar.lock().expect("no panic").logins += 1;
        self.share(notices);
        let mut notices = notices.lock().expect("no panic");
        notices.requests += 2;
        if !self.logged_in {
            notices.failed_posts += 1;
            notices.story(format!("login of {}: {said}", self.login));
        }
    }

    async fn read(&mut self, notices: &Mutex<Notices>) {
        let asked = Instant::now();
        let answer = self.request(Method::GET, "/odoo", "", String::new(), notices).await;
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
        match self.request(Method::POST, path, kind, body, notices).await {
            // JSON routes tell errors with status 200.
            Ok(answer) if answer.status < 500 && !answer.text().contains("Odoo Server Error") => {
                self.check(&answer, path, notices).await;
            }
            failed => {
                let mut notices = notices.lock().expect("no panic");
                (notices.requests, notices.failed_posts) = (notices.requests + 1, notices.failed_posts + 1);
                notices.story(format!("{path} of {}: {}", self.login, outcome(&failed)));
            }
        }
    }

    async fn log_out(&mut self, notices: &Mutex<Notices>) {
        let before = self.browser.sid.clone();
        self.logged_in = false;
        self.share(notices);
        match self.request(Method::GET, "/web/session/logout", "", String::new(), notices).await {
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
        let mut heard = self.browser.websocket("hello").await;
        if heard.is_err() {
            // A browser opens its websocket again by itself.
            heard = self.browser.websocket("hello").await;
        }
        let mut notices = notices.lock().expect("no panic");
        notices.requests += 1;
        match heard {
            Ok(echo) if echo.ends_with(&format!(":{}:hello", self.login)) => {}
            Ok(echo) => {
                notices.wrong_user += usize::from(!echo.ends_with("::hello"));
                notices.story(format!("websocket of {}: {echo}", self.login));
            }
            Err(error) => {
                notices.failed_posts += 1;
                notices.story(format!("websocket of {}: {error:#}", self.login));
            }
        }
    }

    async fn check(&mut self, answer: &Answer, what: &str, notices: &Mutex<Notices>) {
        notices.lock().expect("no panic").requests += 1;
        if answer.login() == self.login {
            if answer.node() != self.node {
                let mut notices = notices.lock().expect("no panic");
                notices.moves += 1;
                let since = self.session.since.elapsed();
                notices.story(format!(
                    "{} moves from {} to {} {since:.1?} after logging in",
                    self.login,
                    self.node,
                    answer.node()
                ));
                answer.node().clone_into(&mut self.node);
            }
            return;
        }
        let mut is_back = false;
        if answer.login().is_empty() {
            // Whoever is shown the login page tries once more.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let again = self.request(Method::GET, "/odoo", "", String::new(), notices).await;
            is_back = again.is_ok_and(|again| again.login() == self.login);
        }
        let mut notices = notices.lock().expect("no panic");
        match answer.login() {
            "" if is_back => {
                notices.detours += 1;
                notices.strays += usize::from(answer.node() != self.node);
            }
            "" => {
                notices.troubles.push(Trouble::new(Wrong::Logout, Some(answer), self.session.clone()));
                notices.uses(&self.login, None);
                self.logged_in = false;
                self.jar.lock().expect("no panic").sid = None;
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
