//! Keeps one directory and the store alike.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{task::block_in_place, time::Instant};

use super::{
    decide::{Mode, State, Step, Version, decide},
    folder::{File, Folder, Look, MOST, Sight},
    name::{DEEPEST, Name},
};
use crate::{
    cli::ReplicateSpec,
    files::{Found, LARGEST, Root, now_ns},
    metrics::{FileOutcome, Metrics},
    sessions::Sealer,
    store::{FileRecord, FilesPlace, Store, StoreError},
};

/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How often a file is looked at again because the store knew better.
const ATTEMPTS: usize = 4;
/// From how many files on more than half of them do not just go.
const MANY: usize = 4;

/// Problems that end, and may be told again.
const DIRECTORY: &str = "it cannot be looked at yet";
const STORE: &str = "the store cannot be asked";

/// What is sealed: a file, or that it is gone.
#[derive(Serialize, Deserialize)]
struct Content {
    name: String,
    version: Version,
    mode: u32,
    content: Vec<u8>,
}

/// A file as the store has it.
struct There {
    version: Version,
    file: Option<File>,
}

/// A file as it was read.
struct Seen {
    state: State,
    /// What shows that it need not be read again; none if that cannot be told.
    sight: Option<Sight>,
}

/// A directory, and what is known of it.
pub(super) struct Carrier {
    path: PathBuf,
    set: String,
    mode: Mode,
    folder: Folder,
    sealer: Arc<Sealer>,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    /// What disk and store agreed on last.
    known: BTreeMap<Name, Version>,
    /// The files on the disk.
    seen: HashMap<Name, Seen>,
    look: Look,
    /// The directory that was looked at last, if it was there.
    root: Option<(u64, u64)>,
    place: FilesPlace,
    /// From which change on the store is read again, and when.
    again: Option<(Instant, u64)>,
    /// Whether the store lost its memory, and is yet to be reminded.
    forgot: bool,
    /// Problems that were told.
    told: Vec<String>,
    most_left: usize,
}

impl Carrier {
    pub(super) fn new(
        spec: &ReplicateSpec,
        sealer: Arc<Sealer>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let ReplicateSpec { path, set, mode } = spec.clone();
        Self {
            folder: Folder::new(Root::new(path.clone())),
            path,
            set,
            mode,
            sealer,
            store,
            metrics,
            known: BTreeMap::new(),
            seen: HashMap::new(),
            look: Look::default(),
            root: None,
            place: FilesPlace::default(),
            again: None,
            forgot: false,
            told: Vec::new(),
            most_left: 0,
        }
    }

    /// Looks at the directory and at the store, and does what is to be done.
    pub(super) async fn round(&mut self) {
        match block_in_place(|| self.folder.look()) {
            Ok(look) => {
                self.told.retain(|told| told != DIRECTORY);
                block_in_place(|| self.see(look));
            }
            Err(error) => {
                // What is there when it is back says nothing of what was deleted.
                self.root = None;
                return self.tell(DIRECTORY, error);
            }
        }
        match self.exchange().await {
            Ok(()) => self.told.retain(|told| told != STORE),
            Err(error) => self.tell(STORE, error),
        }
    }

    /// Takes in what is on the disk.
    fn see(&mut self, mut look: Look) {
        let now = now_ns();
        let mut before = std::mem::take(&mut self.seen);
        for (name, sight) in &look.files {
            let same = before.remove(name).filter(|seen| seen.sight == Some(*sight));
            let seen = same.or_else(|| {
                let (file, sight) = self.folder.read(name).ok().and_then(Found::carried)?;
                Some(Seen { state: file.state(), sight: Some(sight).filter(|sight| sight.is_settled(now)) })
            });
            match seen {
                Some(seen) => drop(self.seen.insert(name.clone(), seen)),
                // It cannot be read, or went just now: nothing is known of it.
                None => drop(look.left.insert(name.as_str().to_owned())),
            }
        }
        let new = look.left.difference(&self.look.left).count() + usize::from(look.over && !self.look.over);
        if new > 0 {
            self.metrics.replicated(&self.set, FileOutcome::Refused, new);
        }
        if look.left.len() > self.most_left || (look.over && !self.look.over) {
            self.most_left = look.left.len();
            tracing::warn!(
                "{}: {} entries are left alone: only plain files are carried, of {} KB and {DEEPEST} folders deep \
                 at most, and {MOST} of them{}",
                self.path.display(),
                look.left.len(),
                LARGEST >> 10,
                if look.over { "; there are more" } else { "" }
            );
        }
        let returned = self.look.left.difference(&look.left).next().is_some() || self.look.over && !look.over;
        if self.root != Some(look.root) {
            self.known.clear();
            self.place.number = 0;
        }
        self.root = Some(look.root);
        self.look = look;
        let lost = self.lost();
        if !lost.is_empty() {
            tracing::warn!("{}: {} files are gone at once and are put back", self.path.display(), lost.len());
            lost.iter().for_each(|name| drop(self.known.remove(name)));
        }
        if returned || !lost.is_empty() {
            self.place.number = 0;
        }
    }

    /// Files that went, too many of them to have been deleted.
    fn lost(&self) -> Vec<Name> {
        let present = |(_, version): &(&Name, &Version)| version.state.is_some();
        let all = self.known.iter().filter(present).count();
        let gone = self.known.iter().filter(present).map(|(name, _)| name);
        let gone: Vec<Name> = gone.filter(|name| self.is_gone(name)).cloned().collect();
        let lost = self.mode == Mode::Newest && all >= MANY && gone.len() * 2 > all;
        if lost { gone } else { Vec::new() }
    }

    fn is_gone(&self, name: &Name) -> bool {
        !self.seen.contains_key(name) && !self.look.over && !self.look.leaves(name)
    }

    async fn exchange(&mut self) -> Result<(), StoreError> {
        if let Some((_, number)) = self.again.take_if(|(when, _)| *when <= Instant::now()) {
            self.place.number = self.place.number.min(number.saturating_sub(1));
        }
        let mut heard = HashMap::new();
        loop {
            let page = self.store.files(&self.set, &self.place).await?;
            if page.place.generation != self.place.generation {
                self.forgot |= !self.place.generation.is_empty();
                self.place = FilesPlace { generation: page.place.generation, number: 0 };
            }
            if page.files.is_empty() {
                break;
            }
            for (number, record) in page.files {
                if let Some((name, there)) = self.open(&record) {
                    heard.insert(name.clone(), record.stamp);
                    self.settle(&name, Some(there), number).await?;
                }
                self.place.number = number;
            }
        }
        if self.forgot {
            self.remind(&heard).await?;
            self.forgot = false;
        }
        let differs = |name: &&Name| {
            self.seen.get(*name).map(|seen| &seen.state)
                != self.known.get(*name).and_then(|known| known.state.as_ref())
        };
        let names: Vec<Name> = self.seen.keys().filter(differs).cloned().collect();
        let gone: Vec<Name> =
            self.known.keys().filter(|name| self.is_gone(name)).filter(differs).cloned().collect();
        for name in names.into_iter().chain(gone) {
            self.settle(&name, None, 0).await?;
        }
        // A store remembers what went for long; here it is of use only to a store that lost its memory.
        if self.known.values().filter(|version| version.state.is_none()).count() > MOST {
            self.known.retain(|_, version| version.state.is_some());
        }
        Ok(())
    }

    /// Tells a store that lost its memory what is known here and it has not heard of.
    async fn remind(&mut self, heard: &HashMap<Name, String>) -> Result<(), StoreError> {
        let older = |name: &Name, stamp: &str| heard.get(name).is_none_or(|heard| heard.as_str() < stamp);
        let known = self.known.iter().filter(|(name, version)| older(name, &version.stamp()));
        for (name, version) in
            known.map(|(name, version)| (name.clone(), version.clone())).collect::<Vec<_>>()
        {
            let file = self.folder_file(&name);
            let state = file.as_ref().map(File::state);
            // What changed here meanwhile is published in any case.
            if state == version.state || (self.mode == Mode::Add && state.is_some()) {
                let there = self.put(&name, Version { state, ..version }, file).await?;
                if there.is_some() {
                    self.settle(&name, there, 0).await?;
                }
            }
        }
        Ok(())
    }

    /// Does what is to be done about one file, of which the store may have told.
    async fn settle(&mut self, name: &Name, mut there: Option<There>, number: u64) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            let disk = self.seen.get(name).map(|seen| seen.state);
            if self.look.leaves(name) || (disk.is_none() && self.look.over) {
                return Ok(());
            }
            let store = there.as_ref().map(|there| &there.version);
            let step = decide(self.mode, disk.as_ref(), self.known.get(name), store);
            match (step, there.take()) {
                (Step::Know, Some(there)) => drop(self.known.insert(name.clone(), there.version)),
                (Step::Take, Some(there)) => self.take(name, disk.as_ref(), there, number),
                (Step::Publish(after), _) => {
                    let file = self.folder_file(name);
                    let state = file.as_ref().map(File::state);
                    if state != disk {
                        // It changes right now: the next look will see.
                        return Ok(());
                    }
                    there = self.put(name, Version::after(after.as_ref(), state), file).await?;
                    if there.is_some() {
                        continue;
                    }
                }
                _ => {}
            }
            return Ok(());
        }
        Ok(())
    }

    /// Makes a file on the disk what the store has.
    fn take(&mut self, name: &Name, disk: Option<&State>, there: There, number: u64) {
        if disk.is_none() && there.file.is_some() && (self.look.is_full() || self.seen.len() >= MOST) {
            self.metrics.replicated(&self.set, FileOutcome::Refused, 1);
            return self.tell("is full", format!("it has {MOST} entries; others are not written"));
        }
        let (done, outcome) = match &there.file {
            Some(file) => (block_in_place(|| self.folder.write(name, file, disk)), FileOutcome::Written),
            None => (block_in_place(|| self.folder.remove(name, disk)), FileOutcome::Removed),
        };
        match done {
            Ok(true) => {
                self.metrics.replicated(&self.set, outcome, 1);
                match there.version.state {
                    Some(state) => drop(self.seen.insert(name.clone(), Seen { state, sight: None })),
                    None => drop(self.seen.remove(name)),
                }
                self.known.insert(name.clone(), there.version);
                return;
            }
            // It changes right now.
            Ok(false) => {}
            Err(error) => {
                self.metrics.replicated(&self.set, FileOutcome::Failed, 1);
                self.tell("a file cannot be written; that is tried again", error);
            }
        }
        let first = self.again.map_or(number, |(_, first)| first.min(number));
        self.again = Some((Instant::now() + AGAIN, first));
    }

    /// Puts a version into the store; what is there if that is newer.
    async fn put(
        &mut self,
        name: &Name,
        version: Version,
        file: Option<File>,
    ) -> Result<Option<There>, StoreError> {
        let field = self.sealer.file_field(&self.set, name.as_str());
        let (stamp, gone) = (version.stamp(), file.is_none());
        let (mode, content) = file.map_or((0, Vec::new()), |file| (file.mode, file.content));
        let content = Content { name: name.as_str().to_owned(), version: version.clone(), mode, content };
        let message = postcard::to_allocvec(&content).ok();
        let seal = message.and_then(|message| self.sealer.seal_file(&self.set, &field, &message));
        let Some(seal) = seal else {
            self.metrics.replicated(&self.set, FileOutcome::Failed, 1);
            return Ok(None);
        };
        let present = self.store.put_file(&self.set, &FileRecord { field, stamp, gone, seal }).await?;
        match present {
            None => {
                self.metrics.replicated(&self.set, FileOutcome::Published, 1);
                self.known.insert(name.clone(), version);
                Ok(None)
            }
            Some(present) => {
                Ok(self.open(&present).filter(|(there, _)| there == name).map(|(_, there)| there))
            }
        }
    }

    /// What a record says, if somebody with the secret wrote it and it is nothing that may not be.
    fn open(&mut self, record: &FileRecord) -> Option<(Name, There)> {
        let open = || {
            let message = self.sealer.open_file(&self.set, &record.field, &record.seal)?;
            let Content { name, version, mode, content } = postcard::from_bytes(&message).ok()?;
            let file = version.state.map(|State { modified_ns, .. }| File { mode, modified_ns, content });
            let sound = file.as_ref().map(File::state) == version.state
                && version.stamp() == record.stamp
                && file.as_ref().is_none_or(|file| file.content.len() as u64 <= LARGEST);
            Some((Name::new(&name).filter(|_| sound)?, There { version, file }))
        };
        let opened = open();
        if opened.is_none() {
            self.metrics.replicated(&self.set, FileOutcome::Refused, 1);
            self.tell("the store has what is of no use", "is it sealed with another secret?");
        }
        opened
    }

    fn folder_file(&self, name: &Name) -> Option<File> {
        block_in_place(|| self.folder.read(name)).ok().and_then(Found::carried).map(|(file, _)| file)
    }

    /// Says what is wrong, once.
    fn tell(&mut self, what: &str, why: impl Display) {
        if !self.told.iter().any(|told| told == what) {
            tracing::warn!("{}: {what}: {why}", self.path.display());
            self.told.push(what.to_owned());
        }
    }
}
