//! The embedded store's tables.

use std::collections::BTreeMap;

use affinity::{NodeId, SessionKey, wire::Owner};
use redb::{
    Database, Error, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::{Copy, Drain, Listed};

/// Session key to [`Record`], in postcard's encoding.
const OWNERS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("owners");
/// When a record expires, in seconds since 1970, and which.
const EXPIRIES: TableDefinition<'_, (u64, [u8; 16]), ()> = TableDefinition::new("expiries");

/// What operators last said of nodes: whether they are drained, and when that was said.
const DRAINS: TableDefinition<'_, &str, (bool, u64)> = TableDefinition::new("drains");

/// Session key to [`Copy`], for as long as it has an owner.
const COPIES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("copies");

/// Who owns a session, and until when if nobody asks for it.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) owner: Owner,
    /// In seconds since 1970.
    pub(super) expires: u64,
}

/// The tables of sessions, open for writing.
pub(super) struct Records<'t> {
    copies: Table<'t, [u8; 16], &'static [u8]>,
    owners: Table<'t, [u8; 16], &'static [u8]>,
    expiries: Table<'t, (u64, [u8; 16]), ()>,
}

impl<'t> Records<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Error> {
        Ok(Self {
            owners: transaction.open_table(OWNERS)?,
            expiries: transaction.open_table(EXPIRIES)?,
            copies: transaction.open_table(COPIES)?,
        })
    }

    /// A session's copy, whose owner is `owner` now.
    pub(super) fn copy(&self, key: SessionKey, owner: Owner) -> Result<Copy, Error> {
        let copy =
            self.copies.get(key.as_bytes())?.and_then(|value| postcard::from_bytes(value.value()).ok());
        Ok(Copy { owner: owner.clone(), ..copy.unwrap_or_else(|| Copy::none_yet(owner)) })
    }

    /// Keeps a copy for as long as its session has an owner.
    pub(super) fn set_copy(&mut self, key: SessionKey, copy: &Copy) -> Result<(), Error> {
        let value = postcard::to_allocvec(copy).map_err(|error| Error::Corrupted(error.to_string()))?;
        self.copies.insert(key.as_bytes(), value.as_slice())?;
        Ok(())
    }

    pub(super) fn get(&self, key: SessionKey) -> Result<Option<Record>, Error> {
        Ok(self.owners.get(key.as_bytes())?.and_then(|value| postcard::from_bytes(value.value()).ok()))
    }

    /// Replaces the record `before`, if any, by another.
    pub(super) fn set(
        &mut self,
        key: SessionKey,
        before: Option<&Record>,
        record: &Record,
    ) -> Result<(), Error> {
        if let Some(before) = before {
            self.expiries.remove((before.expires, *key.as_bytes()))?;
        }
        let value = postcard::to_allocvec(record).map_err(|error| Error::Corrupted(error.to_string()))?;
        self.owners.insert(key.as_bytes(), value.as_slice())?;
        self.expiries.insert((record.expires, *key.as_bytes()), ())?;
        Ok(())
    }

    /// Removes what expired before `now`, `most` records at most; how many.
    pub(super) fn remove_expired(&mut self, now: u64, most: usize) -> Result<usize, Error> {
        let mut expired = Vec::new();
        for entry in self.expiries.range(..(now, [0; 16]))?.take(most) {
            expired.push(entry?.0.value());
        }
        for (time, key) in &expired {
            self.expiries.remove((*time, *key))?;
            self.owners.remove(key)?;
            self.copies.remove(key)?;
        }
        Ok(expired.len())
    }
}

/// One record, outside of any batch.
pub(super) fn find(database: &Database, key: SessionKey) -> Result<Option<Record>, Error> {
    let owners = match database.begin_read()?.open_table(OWNERS) {
        Ok(owners) => owners,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(owners.get(key.as_bytes())?.and_then(|value| postcard::from_bytes(value.value()).ok()))
}

/// The copy of a session with this owner, outside of any batch.
pub(super) fn find_copy(database: &Database, key: SessionKey, owner: Owner) -> Result<Copy, Error> {
    let copies = database.begin_read()?.open_table(COPIES)?;
    let copy = copies.get(key.as_bytes())?.and_then(|value| postcard::from_bytes(value.value()).ok());
    Ok(Copy { owner: owner.clone(), ..copy.unwrap_or_else(|| Copy::none_yet(owner)) })
}

/// The sessions in some `most` records from `from` on, and the key after those.
pub(super) fn list(
    database: &Database,
    from: SessionKey,
    most: usize,
) -> Result<(Vec<Listed>, Option<SessionKey>), Error> {
    let mut sessions = Vec::new();
    let transaction = database.begin_read()?;
    let (owners, copies) = (transaction.open_table(OWNERS)?, transaction.open_table(COPIES)?);
    for (number, entry) in owners.range(*from.as_bytes()..)?.enumerate() {
        let (key, value) = entry?;
        let key = SessionKey::from(key.value());
        if number == most {
            return Ok((sessions, Some(key)));
        }
        if let Ok(Record { owner, .. }) = postcard::from_bytes(value.value()) {
            let copy = copies.get(key.as_bytes())?;
            let copy = copy.and_then(|copy| postcard::from_bytes::<Copy>(copy.value()).ok());
            let version = copy.filter(|copy| !copy.ended).map_or(0, |copy| copy.version);
            sessions.push(Listed { key, owner, version });
        }
    }
    Ok((sessions, None))
}

/// Makes the tables of a new database.
pub(super) fn make(database: &Database) -> Result<(), Error> {
    let transaction = database.begin_write()?;
    drop(Records::open(&transaction)?);
    transaction.open_table(DRAINS)?;
    Ok(transaction.commit()?)
}

/// What operators said of nodes.
pub(super) fn drains(database: &Database) -> Result<BTreeMap<NodeId, Drain>, Error> {
    let mut nodes = BTreeMap::new();
    for entry in database.begin_read()?.open_table(DRAINS)?.iter()? {
        let (name, word) = entry?;
        let (draining, said) = word.value();
        nodes.extend(NodeId::new(name.value()).ok().map(|id| (id, Drain { draining, said })));
    }
    Ok(nodes)
}

/// Notes what an operator says, later than what was said before; returns that, and whether it is news.
pub(super) fn set_draining(database: &Database, node: &NodeId, word: Drain) -> Result<(Drain, bool), Error> {
    let transaction = database.begin_write()?;
    let (word, is_news) = {
        let mut table = transaction.open_table(DRAINS)?;
        let before = table.get(node.as_str())?.map(|word| word.value());
        let said = before.map_or(word.said, |(_, said)| word.said.max(said.saturating_add(1)));
        table.insert(node.as_str(), (word.draining, said))?;
        (Drain { said, ..word }, before.is_some_and(|(draining, _)| draining) != word.draining)
    };
    transaction.commit()?;
    Ok((word, is_news))
}
