//! Files of replicated directories.

use super::*;

fn record(field: &str, stamp: &str, seal: &str) -> FileRecord {
    // Any bytes, also those that separate what Redis keeps.
    let seal = [b"\0 \xff ", seal.as_bytes()].concat();
    FileRecord { field: field.to_owned(), stamp: stamp.to_owned(), gone: seal.ends_with(b"gone"), seal }
}

/// All records after a place, in their order, and the place after them.
async fn read(store: &Arc<dyn Store>, set: &str, from: &FilesPlace) -> (Vec<FileRecord>, FilesPlace) {
    let (mut all, mut place) = (vec![], from.clone());
    loop {
        let page = store.files(set, &place).await.unwrap();
        let numbers: Vec<u64> = page.files.iter().map(|(number, _)| *number).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
        place = page.place;
        if page.files.is_empty() {
            return (all, place);
        }
        all.extend(page.files.into_iter().map(|(_, record)| record));
    }
}

pub(super) async fn of_a_file_s_records_the_newest_is_kept_and_changes_are_read_once(opened: Opened) {
    let start = FilesPlace::default();
    let put = async |set: &str, new: &FileRecord| opened.one.put_file(set, new).await.unwrap();
    let (nothing, place) = read(&opened.other, "a", &start).await;
    assert!(nothing.is_empty());
    let first = record("f", "01", "one");
    assert_eq!(put("a", &first).await, None);
    for older in ["00", "01"] {
        assert_eq!(put("a", &record("f", older, "older")).await, Some(first.clone()));
    }
    assert_eq!(put("b", &record("f", "00", "of another directory")).await, None);
    let (read_of_a, place) = read(&opened.other, "a", &place).await;
    assert_eq!(read_of_a, std::slice::from_ref(&first));
    // Only what is the last change of its file is read, in the order of changes.
    for number in 0..100 {
        assert_eq!(put("a", &record(&format!("many {number}"), "01", "x")).await, None);
    }
    let (gone, back) = (record("f", "02", "gone"), record("f", "03", "back"));
    assert_eq!(put("a", &gone).await, None);
    let (changes, later) = read(&opened.other, "a", &place).await;
    assert_eq!((changes.len(), changes.last()), (101, Some(&gone)));
    assert_eq!(put("a", &back).await, None);
    assert_eq!(read(&opened.other, "a", &later).await.0, std::slice::from_ref(&back));
    assert_eq!(read(&opened.other, "a", &start).await.0.len(), 101);
    // Who comes from another store reads all.
    let foreign = FilesPlace { generation: "foreign".to_owned(), number: 1_000 };
    assert_eq!(read(&opened.other, "a", &foreign).await.0.len(), 101);
    assert_eq!(read(&opened.other, "b", &start).await.0.len(), 1);
}

pub(super) async fn what_is_long_gone_is_forgotten(opened: Opened) {
    let start = FilesPlace::default();
    for new in [record("f", "01", "gone"), record("g", "01", "gone"), record("g", "02", "back")] {
        assert_eq!(opened.one.put_file("a", &new).await.unwrap(), None);
    }
    assert_eq!(read(&opened.other, "a", &start).await.0.len(), 2);
    tokio::time::sleep(SHORT_TIME + Duration::from_millis(1_300)).await;
    assert_eq!(opened.one.put_file("a", &record("h", "01", "x")).await.unwrap(), None);
    let fields: Vec<String> = read(&opened.other, "a", &start).await.0.into_iter().map(|r| r.field).collect();
    assert_eq!(fields, ["g", "h"]);
    assert_eq!(opened.one.put_file("a", &record("f", "00", "anew")).await.unwrap(), None);
}
