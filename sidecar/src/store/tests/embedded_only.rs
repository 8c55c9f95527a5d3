//! What only the embedded store can do: count, outlive its process, and refuse a second one.

use std::{path::Path, time::Instant};

use super::*;

/// Opens a store, waiting for another to be closed.
async fn open(folder: &Path, lifetimes: Lifetimes) -> Embedded {
    let started = Instant::now();
    loop {
        match Embedded::open(folder, lifetimes) {
            Ok(store) => return store,
            Err(OpenError::Busy) if started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// How many sessions some nodes have.
async fn counts(store: &Embedded) -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    for node in ["a", "b"] {
        let sessions = store.list(None).await.unwrap().sessions;
        let count = sessions.iter().filter(|session| session.owner.node.as_str() == node).count();
        counts.push((node.to_owned(), count as u64));
    }
    counts.retain(|(_, count)| *count > 0);
    counts
}

fn of(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
    counts.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect()
}

#[tokio::test]
async fn it_counts_and_outlives_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), LONG).await;
    assert_eq!(counts(&store).await, of(&[]));
    for number in 0..10 {
        store.claim(claim(&format!("session {number}"), "a", 0)).await.unwrap();
    }
    for number in 0..4 {
        let name = format!("session {number}");
        assert_eq!(store.claim(claim(&name, "b", 0)).await.unwrap(), refused("a", 1));
        store.claim(claim(&name, "b", 1)).await.unwrap();
        store.claim(claim(&name, "b", 2)).await.unwrap();
    }
    assert_eq!(counts(&store).await, of(&[("a", 6), ("b", 4)]));

    drop(store);
    let store = open(folder.path(), LONG).await;
    assert_eq!(counts(&store).await, of(&[("a", 6), ("b", 4)]));
    assert_eq!(store.owner(key("session 0")).await.unwrap(), Some(owner("b", 2)));
    assert_eq!(store.owner(key("session 9")).await.unwrap(), Some(owner("a", 1)));
    assert_eq!(store.claim(claim("session 9", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(counts(&store).await, of(&[("a", 5), ("b", 5)]));
}

#[tokio::test]
async fn forgotten_sessions_are_removed_and_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), SHORT).await;
    for number in 0..10 {
        store.claim(claim(&format!("session {number}"), "a", 0)).await.unwrap();
    }
    tokio::time::sleep(SHORT_TIME + Duration::from_millis(1_100)).await;
    // One is claimed before it is removed: it counts for its new owner only.
    store.claim(claim("session 0", "b", 0)).await.unwrap();
    assert_eq!(counts(&store).await, of(&[("a", 9), ("b", 1)]));
    drop(store);
    // What is forgotten is removed now and then; first of all at the start.
    let store = open(folder.path(), LONG).await;
    let started = Instant::now();
    while counts(&store).await != of(&[("b", 1)]) {
        assert!(started.elapsed() < PATIENCE, "{:?}", counts(&store).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.owner(key("session 0")).await.unwrap(), Some(owner("b", 1)));
}

#[tokio::test]
async fn a_second_opening_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), LONG).await;
    let second = Embedded::open(folder.path(), LONG);
    assert!(matches!(second, Err(OpenError::Busy)), "{second:?}");
    assert_eq!(store.claim(claim("s", "a", 0)).await.unwrap(), granted("a", 1), "the first still works");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("directory.redb"), "mine".repeat(5_000)).unwrap();
    let error = Embedded::open(folder.path(), LONG).unwrap_err();
    assert!(matches!(error, OpenError::Database(_)), "{error:?}");
}

#[tokio::test]
async fn it_is_not_where_it_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Embedded::open(&folder.path().join("file/below"), LONG).unwrap_err();
    assert!(matches!(error, OpenError::Io(_)), "{error:?}");
}
