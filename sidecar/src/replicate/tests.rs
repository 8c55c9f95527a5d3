//! Directories over one store, looked at in turn.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::*;
use crate::store::{Embedded, FileRecord, Lifetimes};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn store_in(folder: &TempDir, name: &str) -> Arc<dyn Store> {
    let lifetime = Duration::from_secs(600);
    let lifetimes = Lifetimes { provisional: lifetime, durable: lifetime };
    Arc::new(Embedded::open(&folder.path().join(name), lifetimes).unwrap())
}

/// Two directories, each with who carries it.
struct World {
    folder: TempDir,
    mode: Mode,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    carriers: Vec<Carrier>,
}

impl World {
    fn new(mode: Mode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = store_in(&folder, "store");
        let metrics = Arc::new(Metrics::new());
        let mut world = Self { folder, mode, store, metrics, carriers: vec![] };
        for place in 0..2 {
            fs::create_dir_all(world.path(place, "")).unwrap();
            world.carriers.push(world.carrier(place));
        }
        world
    }

    /// One that knows nothing yet.
    fn carrier(&self, place: usize) -> Carrier {
        let spec = ReplicateSpec { path: self.path(place, ""), set: "openid".to_owned(), mode: self.mode };
        let sealer = Arc::new(Sealer::new(SECRET).unwrap());
        Carrier::new(&spec, sealer, Arc::clone(&self.store), Arc::clone(&self.metrics))
    }

    fn path(&self, place: usize, name: &str) -> PathBuf {
        self.folder.path().join(place.to_string()).join("openid").join(name)
    }

    fn write(&self, place: usize, name: &str, content: &str) {
        fs::create_dir_all(self.path(place, name).parent().unwrap()).unwrap();
        fs::write(self.path(place, name), content).unwrap();
    }

    /// Writes by a clock that is behind, or ahead.
    fn write_at(&self, place: usize, name: &str, content: &str, seconds: i64) {
        self.write(place, name, content);
        let ago = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        let time = if seconds < 0 { now - ago } else { now + ago };
        let file = fs::File::options().write(true).open(self.path(place, name)).unwrap();
        file.set_modified(time).unwrap();
    }

    fn delete(&self, place: usize, name: &str) {
        fs::remove_file(self.path(place, name)).unwrap();
    }

    async fn rounds(&mut self, times: usize) {
        for _ in 0..times {
            for carrier in &mut self.carriers {
                carrier.round().await;
            }
        }
    }

    /// What both directories have of a file; fails if that is not the same.
    fn both(&self, name: &str) -> Option<String> {
        let [one, two] = [0, 1].map(|place| fs::read_to_string(self.path(place, name)).ok());
        assert_eq!(one, two, "{name}");
        one
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_change_wins_whatever_clocks_say_and_deletions_travel() {
    let mut world = World::new(Mode::Newest);
    world.write_at(0, "a/b", "one", 90);
    world.write(1, "c", "two");
    world.rounds(2).await;
    assert_eq!((world.both("a/b").as_deref(), world.both("c").as_deref()), (Some("one"), Some("two")));
    // Its clock is three minutes behind that of who wrote it first, but it knew of that.
    world.write_at(1, "a/b", "three", -90);
    world.rounds(2).await;
    assert_eq!(world.both("a/b").as_deref(), Some("three"));
    // Two changes that know nothing of each other: the later one.
    world.write_at(0, "a/b", "four", 20);
    world.write_at(1, "a/b", "five", 10);
    world.rounds(2).await;
    assert_eq!(world.both("a/b").as_deref(), Some("four"));
    // A change wins over a deletion that did not know of it.
    world.delete(0, "a/b");
    world.write(1, "a/b", "six");
    world.rounds(2).await;
    assert_eq!(world.both("a/b").as_deref(), Some("six"));
    world.delete(0, "a/b");
    world.rounds(2).await;
    assert_eq!(world.both("a/b"), None);
    world.write(0, "a/b", "seven");
    world.rounds(2).await;
    assert_eq!(world.both("a/b").as_deref(), Some("seven"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_is_behind_and_not_ahead() {
    let mut world = World::new(Mode::Newest);
    for name in ["changed", "deleted", "changed here", "deleted here"] {
        world.write_at(0, name, "old", 90);
    }
    world.rounds(2).await;
    world.carriers.remove(1);
    world.write_at(0, "changed", "new", -90);
    world.delete(0, "deleted");
    world.rounds(1).await;
    world.write_at(1, "changed here", "new", 100);
    world.delete(1, "deleted here");
    world.carriers.push(world.carrier(1));
    world.rounds(2).await;
    assert_eq!(world.both("changed").as_deref(), Some("new"));
    assert_eq!(world.both("deleted"), None);
    assert_eq!(world.both("changed here").as_deref(), Some("new"));
    assert_eq!(world.both("deleted here").as_deref(), Some("old"), "nobody saw it go");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_added_to_is_never_changed_or_deleted_elsewhere() {
    let mut world = World::new(Mode::Add);
    world.write(0, "a", "one");
    world.write(1, "b", "two");
    world.rounds(2).await;
    assert_eq!((world.both("a").as_deref(), world.both("b").as_deref()), (Some("one"), Some("two")));
    world.delete(0, "a");
    world.write(0, "b", "other");
    world.rounds(3).await;
    assert!(!world.path(0, "a").exists());
    assert_eq!(fs::read_to_string(world.path(1, "a")).unwrap(), "one");
    assert_eq!(fs::read_to_string(world.path(1, "b")).unwrap(), "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_or_another_directory_is_filled_again_and_a_few_files_are_deleted() {
    let mut world = World::new(Mode::Newest);
    for number in 0..8 {
        world.write(0, &format!("{number}"), "x");
    }
    world.rounds(2).await;
    for number in 0..5 {
        world.delete(0, &format!("{number}"));
    }
    world.rounds(2).await;
    assert!((0..8).all(|number| world.both(&format!("{number}")).is_some()), "5 of 8 were lost");
    for number in 0..4 {
        world.delete(0, &format!("{number}"));
    }
    world.rounds(2).await;
    assert!((0..8).all(|number| world.both(&format!("{number}")).is_some() == (number >= 4)));
    for number in 4..7 {
        world.delete(0, &format!("{number}"));
    }
    world.rounds(2).await;
    assert!((4..8).all(|number| world.both(&format!("{number}")).is_some()), "3 of 4 were lost");
    fs::remove_dir_all(world.path(1, "")).unwrap();
    world.rounds(2).await;
    fs::create_dir(world.path(1, "")).unwrap();
    world.rounds(2).await;
    assert!((4..8).all(|number| world.both(&format!("{number}")).is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_any_more_is_not_deleted_elsewhere_and_comes_back() {
    let mut world = World::new(Mode::Newest);
    world.write(0, "a", "one");
    world.rounds(2).await;
    world.delete(0, "a");
    std::os::unix::fs::symlink("/etc/passwd", world.path(0, "a")).unwrap();
    world.write(1, "a", "two");
    world.rounds(3).await;
    assert!(fs::symlink_metadata(world.path(0, "a")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(world.path(1, "a")).unwrap(), "two");
    world.write(1, "large", &"x".repeat(crate::files::LARGEST as usize + 1));
    world.rounds(2).await;
    assert!(!world.path(0, "large").exists());
    let mut text = world.metrics.text(&[], true, 0);
    assert!(text.contains("mooring_replicated_files_total{set=\"openid\",outcome=\"Refused\"} 2"), "{text}");
    world.delete(0, "a");
    world.rounds(2).await;
    assert_eq!(world.both("a").as_deref(), Some("two"));
    text = world.metrics.text(&[], true, 0);
    assert!(!text.contains("mooring_replicated_files_total{set=\"openid\",outcome=\"Failed\"}"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_full_gets_no_more_and_loses_nothing() {
    let mut world = World::new(Mode::Newest);
    world.write(0, "first", "x");
    world.rounds(2).await;
    for number in 0..folder::MOST {
        fs::File::create(world.path(1, &format!("{number}"))).unwrap();
    }
    world.carriers[1].round().await;
    world.write(0, "second", "x");
    world.carriers[0].round().await;
    world.carriers[1].round().await;
    assert!(world.path(0, "first").exists() && !world.path(1, "second").exists());
    assert!(fs::read_dir(world.path(0, "")).unwrap().count() <= folder::MOST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_its_memory_is_filled_from_disks() {
    let mut world = World::new(Mode::Newest);
    world.write(0, "kept", "one");
    world.write(0, "deleted", "one");
    world.rounds(2).await;
    world.write(1, "kept", "two");
    world.delete(1, "deleted");
    world.rounds(2).await;
    let sealed = world.store.files("openid", &Default::default()).await.unwrap();
    assert_eq!(sealed.files.iter().filter(|(_, record)| record.gone).count(), 1);
    world.store = store_in(&world.folder, "another store");
    world.carriers = vec![world.carrier(0), world.carrier(1)];
    world.rounds(2).await;
    assert_eq!(world.both("kept").as_deref(), Some("two"));
    assert_eq!(world.both("deleted"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_store_writes_nothing() {
    let mut world = World::new(Mode::Newest);
    world.write(0, "a", "one");
    world.rounds(2).await;
    let sealed = world.store.files("openid", &Default::default()).await.unwrap();
    let (_, record) = &sealed.files[0];
    let later = "f".repeat(32);
    let records = [
        FileRecord { stamp: later.clone(), ..record.clone() },
        FileRecord { field: "another".to_owned(), ..record.clone() },
        FileRecord { field: "junk".to_owned(), seal: b"junk".to_vec(), ..record.clone() },
        FileRecord { field: "none".to_owned(), seal: vec![], stamp: later, gone: true },
    ];
    for record in records {
        world.store.put_file("openid", &record).await.unwrap();
    }
    world.write(1, "b", "two");
    world.rounds(3).await;
    assert_eq!((world.both("a").as_deref(), world.both("b").as_deref()), (Some("one"), Some("two")));
    assert_eq!(fs::read_dir(world.path(0, "")).unwrap().count(), 2);
}
