//! The embedded store's tables of replicated files.

use redb::{Database, Error, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    super::files::{FileRecord, FilesPage, FilesPlace, PAGE},
    writer::now,
};

/// A directory and the number of a change to the record that it made, in postcard's encoding, until another
/// change to the same file.
const CHANGES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("file changes");
/// A directory and a file's field to the number of its last change; with no field, of the last of all.
const FILES: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("files");
/// When a file went, in seconds since 1970, and by which change.
const GONE: TableDefinition<'_, (u64, &str, u64), ()> = TableDefinition::new("files gone");

/// This store forgets nothing while somebody reads it.
const GENERATION: &str = "embedded";
/// How many that are gone are forgotten at once.
const FORGET: usize = 100;

/// Makes the tables of a new database.
pub(super) fn make(database: &Database) -> Result<(), Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(CHANGES)?;
    transaction.open_table(FILES)?;
    transaction.open_table(GONE)?;
    Ok(transaction.commit()?)
}

/// What changed since a place.
pub(super) fn read(database: &Database, set: &str, after: &FilesPlace) -> Result<FilesPage, Error> {
    let mut number = if after.generation == GENERATION { after.number } else { 0 };
    let changes = database.begin_read()?.open_table(CHANGES)?;
    let mut files = Vec::new();
    for entry in changes.range((set, number.saturating_add(1))..=(set, u64::MAX))?.take(PAGE) {
        let (key, value) = entry?;
        number = key.value().1;
        files.push((number, decode(value.value())?));
    }
    Ok(FilesPage { place: FilesPlace { generation: GENERATION.to_owned(), number }, files })
}

/// Puts a record if what is there is older; else returns that. What went is forgotten after `lifetime` seconds.
pub(super) fn put(
    database: &Database,
    set: &str,
    file: &FileRecord,
    lifetime: u64,
) -> Result<Option<FileRecord>, Error> {
    let transaction = database.begin_write()?;
    {
        let mut changes = transaction.open_table(CHANGES)?;
        let mut files = transaction.open_table(FILES)?;
        let mut gone = transaction.open_table(GONE)?;
        let field = file.field.as_str();
        if let Some(before) = files.get((set, field))?.map(|number| number.value()) {
            let present = changes.get((set, before))?.map(|value| decode(value.value())).transpose()?;
            if present.as_ref().is_some_and(|present| present.stamp >= file.stamp) {
                return Ok(present);
            }
            changes.remove((set, before))?;
        }
        let number = files.get((set, ""))?.map_or(0, |number| number.value()) + 1;
        let value = postcard::to_allocvec(file).map_err(|error| Error::Corrupted(error.to_string()))?;
        changes.insert((set, number), value.as_slice())?;
        files.insert((set, field), number)?;
        files.insert((set, ""), number)?;
        if file.gone {
            gone.insert((now(), set, number), ())?;
        }
        let mut old = Vec::new();
        for entry in gone.range(..(now().saturating_sub(lifetime), "", 0))?.take(FORGET) {
            let key = entry?.0;
            let (time, set, number) = key.value();
            old.push((time, set.to_owned(), number));
        }
        for (time, set, number) in &old {
            let set = set.as_str();
            gone.remove((*time, set, *number))?;
            // It is not there if the file has come back since.
            let record = changes.remove((set, *number))?.map(|value| decode(value.value())).transpose()?;
            if let Some(record) = record {
                files.remove((set, record.field.as_str()))?;
            }
        }
    }
    transaction.commit()?;
    Ok(None)
}

fn decode(value: &[u8]) -> Result<FileRecord, Error> {
    postcard::from_bytes(value).map_err(|error| Error::Corrupted(error.to_string()))
}
