//! The embedded store's tables.

use std::collections::HashMap;

use affinity::{NodeId, SessionKey, wire::Owner};
use redb::{
    Database, Error, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError, WriteTransaction,
};
use serde::{Deserialize, Serialize};

/// Session key to [`Record`], in postcard's encoding.
const OWNERS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("owners");
/// When a record expires, in seconds since 1970, and which.
const EXPIRIES: TableDefinition<'_, (u64, [u8; 16]), ()> = TableDefinition::new("expiries");

/// Who owns a session, and until when if nobody asks for it.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) owner: Owner,
    /// In seconds since 1970.
    pub(super) expires: u64,
}

/// Both tables, open for writing.
pub(super) struct Records<'t> {
    owners: Table<'t, [u8; 16], &'static [u8]>,
    expiries: Table<'t, (u64, [u8; 16]), ()>,
}

impl<'t> Records<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Error> {
        Ok(Self { owners: transaction.open_table(OWNERS)?, expiries: transaction.open_table(EXPIRIES)? })
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

    /// Removes what expired before `now`, `most` records at most, and tells whose they were.
    pub(super) fn remove_expired(&mut self, now: u64, most: usize) -> Result<Vec<NodeId>, Error> {
        let mut expired = Vec::new();
        for entry in self.expiries.range(..(now, [0; 16]))?.take(most) {
            expired.push(entry?.0.value());
        }
        let mut owners = Vec::with_capacity(expired.len());
        for (time, key) in expired {
            self.expiries.remove((time, key))?;
            let record = self.get(key.into())?;
            self.owners.remove(&key)?;
            owners.extend(record.map(|record| record.owner.node));
        }
        Ok(owners)
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

/// How many sessions each node owns; makes the tables of a new database.
pub(super) fn count_sessions(database: &Database) -> Result<HashMap<NodeId, u64>, Error> {
    let transaction = database.begin_write()?;
    drop(Records::open(&transaction)?);
    transaction.commit()?;
    let mut counts = HashMap::new();
    for entry in database.begin_read()?.open_table(OWNERS)?.iter()? {
        if let Ok(record) = postcard::from_bytes::<Record>(entry?.1.value()) {
            *counts.entry(record.owner.node).or_default() += 1;
        }
    }
    Ok(counts)
}
