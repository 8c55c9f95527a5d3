//! Cookies, session files, login and logout, on every version.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::json;
use support::{Cluster, PROFILES};

type Headers<'a> = &'a [(&'a str, &'a str)];

#[test]
fn an_anonymous_visitor_gets_a_cookie_and_no_file() {
    for (profile, length) in [("16", 40), ("18", 84), ("19", 84)] {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let page = node.get("/web/login", None);
        let sid = page.sid().unwrap();
        assert_eq!((page.status, sid.len(), node.files()), (200, length, 0), "{profile}");
        let cookie = page.header("set-cookie").unwrap();
        assert!(cookie.starts_with(&format!("session_id={sid}; Expires=")), "{cookie}");
        assert!(cookie.ends_with(" GMT; Max-Age=604800; HttpOnly; Path=/"), "{cookie}");

        let again = node.get("/web/login", Some(&sid));
        assert_eq!((again.sid(), node.files()), (None, 0), "{profile}");
    }
}

#[test]
fn a_login_page_of_one_node_can_be_posted_to_another() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
        let page = a.get("/web/login", None);
        let anonymous = page.sid().unwrap();
        let answer = b.post_login(&anonymous, "alice", "pw-alice", &page.csrf_token());
        let sid = answer.sid().unwrap();
        assert_eq!((answer.status, answer.login()), (303, "alice"), "{profile}");
        assert_ne!(sid[..20], anonymous[..20], "{profile}");
        assert!(b.has(&sid) && !b.has(&anonymous) && a.files() == 0, "{profile}");

        assert_eq!(b.post_login(&anonymous, "alice", "pw-alice", "").status, 400);
        assert_eq!(b.post_login(&anonymous, "alice", "pw-alice", "00o99999999999").status, 400);
        let wrong = b.post_login(&anonymous, "alice", "guess", &page.csrf_token());
        assert_eq!((wrong.status, wrong.login(), wrong.sid()), (200, "", None), "{profile}");
        assert!(wrong.text().contains("Wrong login/password"));
    }
}

#[test]
fn the_web_client_needs_a_login_and_touches_the_session() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let refused = node.get("/odoo?debug=", None);
        let to = refused.header("location");
        assert_eq!((refused.status, to), (303, Some("/web/login?redirect=%2Fodoo%3Fdebug%3D")), "{profile}");

        let sid = node.login("alice");
        let page = node.get("/odoo", Some(&sid));
        assert_eq!((page.status, page.login(), page.sid().as_ref()), (200, "alice", Some(&sid)), "{profile}");
        assert!(page.text().contains("data-node=\"odoo-1\" data-login=\"alice\""));
        assert_eq!(node.get("/web/login?redirect=/odoo", Some(&sid)).header("location"), Some("/odoo"));
    }
}

#[test]
fn files_are_where_odoo_keeps_them_and_in_its_form() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let sid = node.login("alice");
        let bytes = fs::read(node.file(&sid)).unwrap();
        assert!((150..=500).contains(&bytes.len()), "{profile}: {} bytes", bytes.len());
        if profile == "16" {
            assert!(bytes.starts_with(b"\x80\x05\x95") && bytes.ends_with(b"u."), "{bytes:?}");
        } else {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains("\"login\": \"alice\", \"uid\": "), "{text}");
            assert_eq!(text.contains("create_time"), profile == "19", "{text}");
        }
        let leftovers =
            fs::read_dir(&node.sessions).unwrap().flatten().filter(|entry| entry.path().is_file());
        assert_eq!(leftovers.count(), 0, "{profile}: temporary files left");
    }
}

#[test]
fn json_login_sets_one_cookie_and_two_on_19() {
    for (profile, copies) in [("16", 1), ("18", 1), ("19", 2)] {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let body = r#"{"params": {"db": "odoo", "login": "alice", "password": "pw-alice"}}"#;
        let answer = node.post("/web/session/authenticate", None, body);
        let sids = answer.sids();
        assert_eq!(sids.len(), copies, "{profile}");
        assert!(sids.iter().all(|sid| sid == &sids[0] && node.has(sid)), "{profile}");
        assert_eq!(answer.json()["result"]["login"], "alice");
        assert_eq!(answer.json()["result"]["node"], "odoo-1");

        let wrong = json!({"login": "alice", "password": "guess"});
        assert_eq!(node.call("/web/session/authenticate", None, wrong)["error"]["code"], 200);
    }
}

#[test]
fn mtime_changes_only_when_the_session_is_saved() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let sid = node.login("alice");
        let changed = || {
            // The kernel's file times move in steps of some milliseconds.
            thread::sleep(Duration::from_millis(20));
            fs::metadata(node.file(&sid)).unwrap().modified().unwrap()
        };
        let after_login = changed();
        let first = node.get("/report/slow", Some(&sid));
        // The first use from a device is noted in the session from 18 on.
        assert_eq!(first.sid().is_some(), profile != "16", "{profile}");
        assert_eq!(changed() > after_login, profile != "16", "{profile}");
        let before = changed();
        let second = node.get("/report/slow", Some(&sid));
        assert_eq!((second.login(), second.sid(), changed()), ("alice", None, before), "{profile}");
        node.get("/odoo", Some(&sid));
        assert!(changed() > before, "{profile}");
    }
}

#[test]
fn a_new_browser_or_address_saves_the_session() {
    for profile in ["18", "19"] {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let sid = node.login("alice");
        let cookie = format!("session_id={sid}");
        let firefox = [("Cookie", cookie.as_str()), ("User-Agent", "Mozilla/5.0 (X11; Linux) Firefox/140.0")];
        let alone = [("Cookie", cookie.as_str()), ("X-Forwarded-For", "192.0.2.1")];
        let forwarded = [alone[0], alone[1], ("X-Forwarded-Host", "odoo.example")];
        node.get("/report/slow", Some(&sid));
        let table = [(&firefox[..], true), (&firefox, false), (&alone, false), (&forwarded, true)];
        for (headers, dirty) in table {
            let answer = node.get_with("/report/slow", headers);
            assert_eq!(answer.sid().is_some(), dirty, "{profile} {headers:?}");
        }
        let traces = node.session(&sid)["_trace"].clone();
        assert_eq!(traces.as_array().unwrap().len(), 3, "{traces}");
        assert_eq!(traces[2]["ip_address"], "192.0.2.1");
    }
}

#[test]
fn a_copied_file_is_a_session_on_the_other_node() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
        let sid = a.login("alice");
        a.copy_to(&b, &sid);
        let page = b.get("/odoo", Some(&sid));
        assert_eq!((page.status, page.login()), (200, "alice"), "{profile}");

        // Logout on one node leaves the other's copy valid.
        a.get("/web/session/logout", Some(&sid));
        assert_eq!(b.get("/odoo", Some(&sid)).login(), "alice", "{profile}");
    }
}

#[test]
fn a_missing_file_gives_error_100_or_the_login_page_and_the_cookie_stays() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
        let sid = a.login("alice");
        let page = b.get("/odoo", Some(&sid));
        assert_eq!((page.status, page.sid(), page.login()), (303, None, ""), "{profile}");
        let expired = b.call("/web/dataset/call_kw", Some(&sid), json!({}));
        assert_eq!(expired["error"]["code"], 100, "{profile}");
        assert_eq!(b.files(), 0, "{profile}");

        let call = json!({"model": "res.partner", "method": "read"});
        let answer = a.call("/web/dataset/call_kw/res.partner/read", Some(&sid), call);
        assert_eq!(
            (&answer["result"]["login"], &answer["result"]["method"]),
            (&json!("alice"), &json!("read"))
        );
    }
}

#[test]
fn a_password_change_ends_the_sessions_everywhere() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
        let sid = b.login("alice");
        let own = a.login("alice");
        assert_eq!(a.post("/standin/change_password", Some(&own), "password=new").status, 200);
        assert_eq!(a.get("/odoo", Some(&own)).login(), "alice", "the changing session goes on");

        let call = b.post("/web/dataset/call_kw", Some(&sid), "{}");
        assert_eq!((&call.json()["error"]["code"], call.sid()), (&json!(100), None), "{profile}");
        assert!(b.has(&sid), "a JSON error leaves the file");
        let page = b.get("/odoo", Some(&sid));
        let replaced = page.sid().unwrap();
        assert_eq!((page.status, page.login()), (303, ""), "{profile}");
        assert!(replaced != sid && b.has(&replaced) && !b.has(&sid), "{profile}");

        let page = b.get("/web/login", None);
        let anonymous = page.sid().unwrap();
        assert_eq!(b.post_login(&anonymous, "alice", "pw-alice", &page.csrf_token()).login(), "");
        assert_eq!(b.post_login(&anonymous, "alice", "new", &page.csrf_token()).login(), "alice");
    }
}

#[test]
fn logout_deletes_the_file_and_saves_an_anonymous_session() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let sid = node.login("alice");
        let answer = node.get("/web/session/logout", Some(&sid));
        let anonymous = answer.sid().unwrap();
        assert_eq!((answer.status, answer.header("location")), (303, Some("/odoo")), "{profile}");
        assert!(!node.has(&sid) && node.has(&anonymous) && sid[..20] != anonymous[..20], "{profile}");
        assert_eq!(node.state()["sessions"], json!({"files": 1, "logged_in": 0, "anonymous": 1}));
        assert_eq!(node.get("/odoo", Some(&anonymous)).status, 303);
    }
}

#[test]
fn an_unknown_session_is_clobbered_by_the_debug_mode() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
        let sid = a.login("alice");
        let answer = b.get("/web/login?debug=1", Some(&sid));
        assert_eq!(answer.sid(), Some(sid.clone()), "{profile}");
        assert!(b.has(&sid), "{profile}");
        if profile != "16" {
            assert_eq!(b.session(&sid)["uid"], json!(null));
            assert_eq!(b.session(&sid)["debug"], "1");
        }
        // Copied over the good file it logs the user out.
        b.copy_to(&a, &sid);
        assert_eq!(a.get("/odoo", Some(&sid)).status, 303, "{profile}");
    }
}

#[test]
fn where_the_session_id_is_taken_from() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let (sid, other) = (node.login("alice"), node.login("bob"));
        let (one, two) = (format!("session_id={sid}"), format!("session_id={other}"));
        let both = format!("{one}; {two}");
        let quoted = format!("a=b; session_id=\"{sid}\"");
        let explicit = if profile == "16" { "alice" } else { "" };
        let query = format!("/report/slow?session_id={sid}");
        let table: [(&str, Headers<'_>, &str); 7] = [
            ("/report/slow", &[("Cookie", &one)], "alice"),
            ("/report/slow", &[("Cookie", &both)], "alice"),
            ("/report/slow", &[("Cookie", &quoted)], "alice"),
            ("/report/slow", &[("Cookie", &one), ("Cookie", "a=b")], ""),
            ("/report/slow", &[("Cookie", "a=b"), ("Cookie", &one)], ""),
            ("/report/slow", &[("X-Openerp-Session-Id", &sid)], explicit),
            (&query, &[], explicit),
        ];
        for (path, headers, login) in table {
            let answer = node.get_with(path, headers);
            assert_eq!(answer.login(), login, "{profile} {path} {headers:?}");
            let lost = login.is_empty();
            assert!(!lost || answer.sid().is_some(), "{profile}: a lost session is replaced");
            if profile == "16" && !lost {
                assert_eq!(answer.sid(), None, "an explicit session sets no cookie");
            }
        }
    }
}

#[test]
fn some_routes_never_set_a_cookie() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        for path in ["/web/health", "/websocket/health", "/web/static/x.css", "/standin/state", "/nothing"] {
            assert_eq!(node.get(path, None).all("set-cookie"), Vec::<&str>::new(), "{profile} {path}");
        }
        let health = node.get("/web/health?db_server_status=1", None);
        assert_eq!(health.json(), json!({"status": "pass", "db_server_status": true}));
        let stateless = node.get_with("/web/login", &[("X-Odoo-Database", "odoo")]);
        assert_eq!(stateless.sid().is_none(), profile == "19");

        let login = json!({"service": "common", "method": "login", "args": ["odoo", "alice", "pw-alice"]});
        let answer = node.post("/jsonrpc", None, &json!({"params": login}).to_string());
        let uid = answer.json()["result"].clone();
        assert_eq!((answer.sid(), uid.is_i64()), (None, true), "{profile}");
        for (password, known) in [("pw-alice", true), ("guess", false)] {
            let args = json!(["odoo", uid, password, "res.partner", "read", [[1]]]);
            let call = json!({"service": "object", "method": "execute_kw", "args": args});
            let result = node.call("/jsonrpc", None, call);
            assert_eq!(result["result"]["login"] == "alice", known, "{result}");
        }
    }
}

#[test]
fn the_daily_cron_deletes_old_files_of_its_node() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
        let sid = a.login("alice");
        a.copy_to(&b, &sid);
        assert_eq!(a.post("/standin/gc?older_than_secs=60", None, "").json()["deleted"], 0);
        assert_eq!(a.post("/standin/gc?older_than_secs=0", None, "").json()["deleted"], 1);
        assert!(!a.has(&sid) && b.has(&sid), "{profile}");
    }
}

#[test]
fn what_cannot_be_saved_is_an_error_unless_only_the_rename_fails() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let sid = node.login("alice");
        // A file where a folder belongs: Odoo ignores that it can neither be made nor renamed into.
        let other: String = sid.chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
        fs::write(node.sessions.join(&other[..2]), "").unwrap();
        let ignored = node.get("/web/login?debug=1", Some(&other));
        assert_eq!((ignored.status, ignored.sid()), (200, Some(other)), "{profile}");
        // Nowhere to put a temporary file, as on a disk that is full.
        let away = node.sessions.with_extension("away");
        fs::rename(&node.sessions, &away).unwrap();
        fs::write(&node.sessions, "").unwrap();
        let call = json!({"params": {"login": "bob", "password": "pw-bob"}}).to_string();
        let failed = node.post("/web/session/authenticate", None, &call);
        assert_eq!((failed.status, failed.sid()), (200, None), "{profile}");
        assert_eq!(failed.json()["error"]["message"], "Odoo Server Error", "{profile}");
        let page = node.get("/web/login", None);
        let answer = node.post_login(&page.sid().unwrap(), "bob", "pw-bob", &page.csrf_token());
        assert_eq!((answer.status, answer.sid()), (500, None), "{profile}");
        // What was saved before is as it was.
        fs::remove_file(&node.sessions).unwrap();
        fs::rename(&away, &node.sessions).unwrap();
        assert_eq!(node.get("/odoo", Some(&sid)).login(), "alice", "{profile}");
    }
}
