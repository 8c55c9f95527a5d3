//! What happens in a sessions directory, as the kernel tells it.

use std::{collections::HashSet, path::Path, time::Duration};

use notify::{
    Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{ModifyKind, RenameMode},
};
use tokio::{sync::mpsc, time::sleep};

use super::disk::{Disk, Place};

/// Events that wait to be looked at. Beyond that the whole directory is.
const WAITING: usize = 1 << 16;
/// How often a directory is looked for that is not there.
const LOOK_FOR: Duration = Duration::from_secs(1);
/// When a new folder is looked into once more: its first file may come before the kernel is asked to tell
/// of it.
const LOOK_AGAIN: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(50), Duration::from_secs(1)];
/// How long nothing may have happened before somebody looks whether the directory is still the same.
const LOOK_AFTER: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A file of this session was written.
    Changed(Place),
    /// A file of this session is gone.
    Removed(Place),
    /// Something may have been missed.
    Anything,
}

/// Tells what happens in a directory until the receiver is gone. Where it is not there, it is waited for.
pub(super) async fn watch(disk: &Disk, seen: &mpsc::Sender<Seen>) {
    let mut waits = false;
    while !seen.is_closed() {
        match watch_once(disk, seen).await {
            Ok(()) => waits = false,
            Err(error) if !waits => {
                waits = true;
                tracing::warn!("{} cannot be followed yet: {error}", disk.root().display());
            }
            Err(_) => {}
        }
        sleep(LOOK_FOR).await;
    }
}

/// Tells what happens until the directory is another one.
async fn watch_once(disk: &Disk, seen: &mpsc::Sender<Seen>) -> notify::Result<()> {
    let (sender, mut events) = mpsc::channel(WAITING);
    let overflow = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let overflowed = std::sync::Arc::clone(&overflow);
    let handler = move |event: notify::Result<Event>| {
        if sender.try_send(event).is_err() {
            overflowed.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let mut watcher = RecommendedWatcher::new(handler, Config::default().with_follow_symlinks(false))?;
    // Opened first: then its path leads over no link.
    let identity = identity(disk)?;
    watcher.watch(disk.root(), RecursiveMode::Recursive)?;
    // What was there before, and what came while the watch was being set up.
    let mut anything = true;
    loop {
        if std::mem::take(&mut anything) && seen.send(Seen::Anything).await.is_err() {
            return Ok(());
        }
        let Ok(event) = tokio::time::timeout(LOOK_AFTER, events.recv()).await else {
            if self::identity(disk).ok() != Some(identity) {
                return Ok(());
            }
            continue;
        };
        let Some(event) = event else { return Ok(()) };
        anything = overflow.swap(false, std::sync::atomic::Ordering::Relaxed);
        let event = event?;
        anything |= event.need_rescan();
        for path in &event.paths {
            if *path == disk.root() && event.kind.is_remove() {
                return Ok(());
            }
            if let Some(one) = read(disk, &event.kind, path) {
                if seen.send(one).await.is_err() {
                    return Ok(());
                }
            } else if is_new(&event.kind)
                && let Some(folder) = disk.folder_name(path)
            {
                tokio::spawn(look_into(disk.clone(), folder.to_owned(), seen.clone()));
            }
        }
    }
}

/// What an event says of a session.
fn read(disk: &Disk, kind: &EventKind, path: &Path) -> Option<Seen> {
    let place = disk.place(path)?;
    match kind {
        EventKind::Access(_) => None,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
            Some(Seen::Removed(place))
        }
        _ => Some(Seen::Changed(place)),
    }
}

fn is_new(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)))
}

/// Tells what is in a folder that Odoo just made, which it does right before its first file.
async fn look_into(disk: Disk, folder: String, seen: mpsc::Sender<Seen>) {
    let mut told = HashSet::new();
    for wait in [Duration::ZERO].into_iter().chain(LOOK_AGAIN) {
        sleep(wait).await;
        let mut found = Vec::new();
        // A folder that cannot be read is looked at with everything else.
        let _ = disk.walk_folder(&folder, &mut |place| {
            found.push(place);
            true
        });
        for place in found {
            if told.insert(place.sid.clone()) && seen.send(Seen::Changed(place)).await.is_err() {
                return;
            }
        }
    }
}

/// Which directory lies under the path now.
fn identity(disk: &Disk) -> std::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(disk.open()?)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{files::Root, sessions::layout::Sid};

    /// Waits until a session was told of; what was told before.
    async fn told(seen: &mut mpsc::Receiver<Seen>, wanted: impl Fn(&Seen) -> bool) {
        let told = async { while !wanted(&seen.recv().await.expect("it watches")) {} };
        tokio::time::timeout(Duration::from_secs(10), told).await.expect("it is told");
    }

    #[tokio::test]
    async fn writes_and_removals_are_told_also_in_new_folders_and_a_new_directory() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("sessions");
        let disk = Disk::new(Root::new(root.clone()));
        let (sender, mut seen) = mpsc::channel(1_024);
        let watched = disk.clone();
        tokio::spawn(async move { watch(&watched, &sender).await });
        for _ in 0..2 {
            fs::create_dir(&root).unwrap();
            told(&mut seen, |seen| *seen == Seen::Anything).await;
            for number in 0..40 {
                let sid = format!("{number:02}{}", "x".repeat(82));
                fs::create_dir(root.join(&sid[..2])).unwrap();
                let temporary = root.join("tmp1.__wz_sess");
                fs::write(&temporary, "{}").unwrap();
                let path = root.join(&sid[..2]).join(&sid);
                fs::rename(&temporary, &path).unwrap();
                let sid = Sid::new(&sid).unwrap();
                told(&mut seen, |seen| matches!(seen, Seen::Changed(place) if place.sid == sid)).await;
                if number % 2 == 0 {
                    fs::remove_file(&path).unwrap();
                    told(&mut seen, |seen| matches!(seen, Seen::Removed(place) if place.sid == sid)).await;
                }
            }
            fs::remove_dir_all(&root).unwrap();
        }
    }
}
