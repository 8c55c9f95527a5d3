//! Files of replicated directories in Redis: a hash of their records, and in which order they changed.

use redis::{FromRedisValue, RedisError};

use super::{
    super::{FileRecord, FilesPage, FilesPlace, StoreError, files::PAGE},
    Redis, failed,
    scripts::{FILES, PUT_FILE},
};

impl Redis {
    pub(super) async fn read_files(&self, set: &str, after: &FilesPlace) -> Result<FilesPage, StoreError> {
        let [files, order, _] = self.keys.files(set);
        let mut script = FILES.key(files);
        script.key(order);
        script.arg(&after.generation).arg(after.number).arg(PAGE);
        script.arg(format!("{:016x}", rand::random::<u64>()));
        type Found = (String, Vec<(u64, String, Vec<u8>)>);
        let (generation, found): Found = self.run(&script).await?;
        // Where it begins anew because the generation is another one, it is known only now.
        let begun = if generation == after.generation { after.number } else { 0 };
        let number = found.last().map_or(begun, |(number, ..)| *number);
        let files = found.into_iter().map(|(number, field, value)| Ok((number, decode(field, &value)?)));
        Ok(FilesPage {
            place: FilesPlace { generation, number },
            files: files.collect::<Result<_, StoreError>>()?,
        })
    }

    pub(super) async fn write_file(
        &self,
        set: &str,
        file: &FileRecord,
    ) -> Result<Option<FileRecord>, StoreError> {
        let [files, order, gone] = self.keys.files(set);
        let mut script = PUT_FILE.key(files);
        script.key(order).key(gone);
        script.arg(&file.field).arg(&file.stamp).arg(&file.seal[..]).arg(u8::from(file.gone));
        script.arg(self.lifetimes.durable.as_secs());
        let present: Option<Vec<u8>> = self.run(&script).await?;
        present.map(|value| decode(file.field.clone(), &value)).transpose()
    }

    async fn run<T: FromRedisValue>(&self, script: &redis::ScriptInvocation<'_>) -> Result<T, StoreError> {
        let found: Result<T, RedisError> =
            self.link.run(async |connection| script.invoke_async(connection).await).await;
        found.map_err(failed)
    }
}

/// A value of the hash: the stamp, 1 if it is gone, and the seal, with spaces between.
fn decode(field: String, value: &[u8]) -> Result<FileRecord, StoreError> {
    let mut parts = value.splitn(3, |byte| *byte == b' ');
    let mut part = || parts.next().ok_or_else(|| StoreError::Foreign("no record of a file".into()));
    let (stamp, gone, seal) = (part()?, part()?, part()?);
    let stamp = String::from_utf8_lossy(stamp).into_owned();
    Ok(FileRecord { field, stamp, gone: gone == b"1", seal: seal.to_owned() })
}
