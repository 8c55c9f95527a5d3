//! Soft rotation, which only 19 has.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::json;
use support::Cluster;

const AT_ONCE: [&str; 2] = ["--rotation-secs", "0"];

#[test]
fn the_first_half_stays_and_the_old_file_names_the_new_one() {
    let cluster = Cluster::with("19", &AT_ONCE);
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    let answer = node.get("/report/slow", Some(&sid));
    let next = answer.sid().unwrap();
    assert_eq!((next.len(), &next[..42], answer.login()), (84, &sid[..42], "alice"));
    assert_ne!(next, sid);
    let (old, new) = (node.session(&sid), node.session(&next));
    assert_eq!(old["next_sid"], json!(next));
    assert!(old["deletion_time"].as_f64().unwrap() > new["create_time"].as_f64().unwrap() + 110.0);
    assert_eq!((&new["gc_previous_sessions"], new.get("next_sid")), (&json!(true), None));
    assert_ne!(old["session_token"], new["session_token"]);

    // The old id is still accepted, and leads to the same next one.
    let late = node.get("/odoo", Some(&sid));
    assert_eq!((late.login(), late.sid()), ("alice", Some(next)));
}

#[test]
fn a_login_page_outlives_the_rotation() {
    let cluster = Cluster::with("19", &AT_ONCE);
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    let page = node.get("/web/login", Some(&sid));
    let next = page.sid().unwrap();
    let token = page.csrf_token();
    assert_eq!(node.post_login(&next, "bob", "pw-bob", &token).login(), "bob");
}

#[test]
fn older_versions_never_rotate_softly() {
    for profile in ["16", "18"] {
        let cluster = Cluster::with(profile, &AT_ONCE);
        let node = cluster.node("odoo-1");
        let sid = node.login("alice");
        assert_eq!(node.get("/odoo", Some(&sid)).sid(), Some(sid), "{profile}");
    }
}

#[test]
fn parallel_requests_agree_on_the_next_id() {
    let cluster = Cluster::with("19", &["--rotation-secs", "1"]);
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    thread::sleep(Duration::from_millis(1_100));
    let next: BTreeSet<_> = thread::scope(|scope| {
        let requests: Vec<_> =
            (0..20).map(|_| scope.spawn(|| node.get("/report/slow", Some(&sid)).sid())).collect();
        requests.into_iter().map(|request| request.join().unwrap()).collect()
    });
    assert_eq!(next.len(), 1, "one next id for all of them");
    assert_eq!(node.files(), 2);
}

#[test]
fn two_nodes_with_one_old_file_disagree() {
    let cluster = Cluster::with("19", &AT_ONCE);
    let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
    let sid = a.login("alice");
    a.copy_to(&b, &sid);
    let (of_a, of_b) = (a.get("/odoo", Some(&sid)).sid().unwrap(), b.get("/odoo", Some(&sid)).sid().unwrap());
    assert_ne!(of_a, of_b);
    assert_eq!(of_a[..42], of_b[..42]);
}

#[test]
fn an_old_file_copied_before_the_new_one_leads_to_a_missing_session() {
    let cluster = Cluster::with("19", &AT_ONCE);
    let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
    let sid = a.login("alice");
    let next = a.get("/odoo", Some(&sid)).sid().unwrap();
    a.copy_to(&b, &sid);
    assert_eq!(b.get("/odoo", Some(&sid)).sid(), Some(next.clone()));
    assert_eq!(b.get("/odoo", Some(&next)).status, 303);
}

#[test]
fn after_the_grace_time_the_old_files_go_and_the_own_one_is_saved_again() {
    let cluster = Cluster::with("19", &["--rotation-secs", "2", "--rotation-grace-secs", "1"]);
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    thread::sleep(Duration::from_millis(2_050));
    let next = node.get("/report/slow", Some(&sid)).sid().unwrap();
    assert!(node.has(&sid) && node.has(&next));

    thread::sleep(Duration::from_millis(1_050));
    let answer = node.get("/report/slow", Some(&next));
    assert_eq!((answer.login(), answer.sid()), ("alice", Some(next.clone())));
    assert!(!node.has(&sid) && node.has(&next));
    assert_eq!(node.session(&next).get("gc_previous_sessions"), None);
    assert_eq!(node.get("/report/slow", Some(&sid)).login(), "", "the old id is gone");
}

#[test]
fn an_old_id_past_its_deletion_time_is_logged_out() {
    let cluster = Cluster::with("19", &["--rotation-secs", "0", "--rotation-grace-secs", "0"]);
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    let next = node.get("/report/slow", Some(&sid)).sid().unwrap();
    let answer = node.get("/odoo", Some(&sid));
    assert_eq!((answer.status, answer.login()), (303, ""));
    assert!(!answer.sid().unwrap().starts_with(&sid[..42]));
    assert!(node.has(&next) && !node.has(&sid));
}
