//! Copies of sessions, in every store.

use affinity::IdProof;

use super::*;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(super) fn publication(by: &str, base: u64, content: &str) -> Publication {
    Publication {
        node: node(by),
        epoch: 0,
        base,
        digest: [7; 16],
        anonymous: content.is_empty(),
        proofs: vec![proof(content), proof("another file")],
        seal: content.into(),
    }
}

fn proof(of: &str) -> IdProof {
    IdProof::of_session_id(of.as_bytes())
}

async fn refused_with(store: &Arc<dyn Store>, name: &str, new: Publication) -> Copy {
    match store.publish(key(name), new).await.unwrap() {
        Published::Refused(copy) => copy,
        stored => panic!("{stored:?}"),
    }
}

pub(super) async fn only_the_owner_publishes_and_only_from_where_it_started(opened: Opened) {
    let (one, other) = (&opened.one, &opened.other);
    assert_eq!(one.copy(key("s")).await.unwrap(), None);
    // Publishing claims what nobody owns.
    let stored = |name: &str, epoch, version| Published::Stored { owner: owner(name, epoch), version };
    assert_eq!(one.publish(key("s"), publication("a", 0, "first")).await.unwrap(), stored("a", 1, 1));
    let copy = other.copy(key("s")).await.unwrap().unwrap();
    assert_eq!((copy.owner, copy.version, copy.digest), (owner("a", 1), 1, [7; 16]));
    assert_eq!((copy.seal, copy.anonymous, copy.ended), (b"first".to_vec(), false, false));
    assert_eq!(copy.holders, [(node("a"), 1)].into());

    let refused = refused_with(other, "s", publication("b", 1, "another node's")).await;
    assert_eq!((refused.owner, refused.version), (owner("a", 1), 1));
    assert_eq!(refused_with(one, "s", publication("a", 0, "of an old version")).await.version, 1);
    assert_eq!(
        refused_with(one, "s", publication("a", 1, "")).await.seal,
        b"first",
        "nobody's over somebody's"
    );
    assert_eq!(one.publish(key("s"), publication("a", 1, "second")).await.unwrap(), stored("a", 1, 2));

    // Who has it is noted, and lost with the next version.
    other.has_copy(key("s"), &node("b"), 2).await.unwrap();
    let holds = async |name: &str| {
        for _ in 0..100 {
            let copy = other.copy(key("s")).await.unwrap().unwrap();
            if copy.is_at(&node(name)) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    };
    assert!(holds("a").await && holds("b").await && !holds("c").await);
    assert_eq!(one.publish(key("s"), publication("a", 2, "third")).await.unwrap(), stored("a", 1, 3));
    assert!(!holds("b").await);
    // A note of what is not there makes nothing.
    other.has_copy(key("unknown"), &node("b"), 2).await.unwrap();
    assert_eq!(other.copy(key("unknown")).await.unwrap(), None);

    // The new owner goes on where the old one stopped.
    assert_eq!(other.claim(claim("s", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(refused_with(one, "s", publication("a", 3, "too late")).await.owner, owner("b", 2));
    let late = |epoch, base| Publication { epoch, ..publication("a", base, "under way when it moved") };
    assert_eq!(refused_with(one, "s", late(1, 2)).await.version, 3);
    assert_eq!(one.publish(key("s"), late(1, 3)).await.unwrap(), stored("b", 2, 4));
    let moved = other.copy(key("s")).await.unwrap().unwrap();
    assert_eq!(
        (moved.owner.clone(), moved.is_at(&node("a")), moved.is_at(&node("b"))),
        (owner("b", 2), true, false)
    );
    assert_eq!(other.publish(key("s"), publication("b", 4, "fifth")).await.unwrap(), stored("b", 2, 5));
    assert_eq!(refused_with(one, "s", late(1, 4)).await.version, 5);
    other.claim(claim("s", "c", 2)).await.unwrap();
    assert_eq!(refused_with(one, "s", late(1, 5)).await.owner, owner("c", 3), "not who owned it last");
    // What was claimed before its file was seen has no copy yet.
    one.claim(claim("claimed", "a", 0)).await.unwrap();
    assert_eq!(one.copy(key("claimed")).await.unwrap(), Some(Copy::none_yet(owner("a", 1))));
    // A store that lost its memory takes what the nodes know.
    let known = Publication { epoch: 5, ..publication("a", 9, "known") };
    assert_eq!(one.publish(key("rebuilt"), known).await.unwrap(), stored("a", 5, 10));
}

pub(super) async fn an_ended_session_cannot_be_brought_back(opened: Opened) {
    let (one, other) = (&opened.one, &opened.other);
    let by = |name: &str, version| EndedBy::Node(node(name), version);
    assert!(!one.end(key("unknown"), by("a", 1)).await.unwrap());
    one.publish(key("s"), publication("a", 0, "first")).await.unwrap();
    one.publish(key("s"), publication("a", 1, "second")).await.unwrap();
    assert!(!other.end(key("s"), by("b", 1)).await.unwrap(), "not what the session is");
    assert!(other.end(key("s"), by("b", 2)).await.unwrap());
    assert!(!one.end(key("s"), by("a", 2)).await.unwrap(), "once");
    let ended = one.copy(key("s")).await.unwrap().unwrap();
    assert_eq!(ended, Copy { ended: true, ..Copy::none_yet(owner("a", 1)) });
    for base in [0, 2] {
        assert!(refused_with(one, "s", publication("a", base, "again")).await.ended);
    }
    assert_eq!(other.claim(claim("s", "b", 1)).await.unwrap(), granted("b", 2));
    assert!(refused_with(other, "s", publication("b", 0, "again")).await.ended);

    one.publish(key("t"), publication("a", 0, "first")).await.unwrap();
    assert!(other.end(key("t"), by("a", 0)).await.unwrap(), "the owner may, before it knows its version");
    one.publish(key("u"), publication("a", 0, "first")).await.unwrap();
    assert!(other.end(key("u"), EndedBy::Operator).await.unwrap());
    // What was only claimed leaves nothing behind: a visitor's session before a login.
    one.claim(claim("visitor", "a", 0)).await.unwrap();
    assert!(!one.end(key("visitor"), EndedBy::Operator).await.unwrap());
    assert_eq!(one.copy(key("visitor")).await.unwrap(), Some(Copy::none_yet(owner("a", 1))));
    // Who left it must have held it, as it is now.
    one.publish(key("w"), publication("a", 0, "first")).await.unwrap();
    one.publish(key("w"), publication("a", 1, "second")).await.unwrap();
    for wrong in ["first", "", "second ", "w"] {
        assert!(!other.end(key("w"), EndedBy::Holder(proof(wrong))).await.unwrap(), "{wrong:?}");
    }
    for unknown in ["visitor", "unknown"] {
        assert!(!other.end(key(unknown), EndedBy::Holder(proof("second"))).await.unwrap());
    }
    assert_eq!(one.copy(key("w")).await.unwrap().unwrap().proofs.len(), 2);
    assert!(other.end(key("w"), EndedBy::Holder(proof("another file"))).await.unwrap());
    assert!(!other.end(key("w"), EndedBy::Holder(proof("second"))).await.unwrap(), "once");
    // Who saw a session end says so to a store that forgot it.
    assert!(!one.end(key("v"), EndedBy::Operator).await.unwrap());
    assert!(one.end(key("v"), EndedBy::Witness(node("c"))).await.unwrap());
    assert!(refused_with(other, "v", publication("a", 0, "again")).await.ended);
}

pub(super) async fn a_copy_of_somebody_outlives_one_of_nobody(opened: Opened) {
    let store = &opened.one;
    store.publish(key("somebody"), publication("a", 0, "x")).await.unwrap();
    store.publish(key("nobody"), publication("a", 0, "")).await.unwrap();
    tokio::time::sleep(SHORT_TIME + Duration::from_millis(500)).await;
    assert!(store.copy(key("somebody")).await.unwrap().is_some());
    assert_eq!(store.copy(key("nobody")).await.unwrap(), None);
}

pub(super) async fn what_happens_to_copies_is_told(opened: Opened) {
    let (sender, mut events) = mpsc::channel(1_024);
    let followed = Arc::clone(&opened.other);
    tokio::spawn(async move { followed.follow_copies(sender).await });
    let probe = key("probe");
    loop {
        opened.one.want_copy(probe, &node("a")).await.unwrap();
        if let Ok(Some(CopyEvent::Of(..))) = timeout(Duration::from_millis(100), events.recv()).await {
            break;
        }
    }
    let mut next = async || {
        let next = async {
            loop {
                match events.recv().await.expect("it still follows") {
                    CopyEvent::Of(key, _) if key == probe => {}
                    event => break event,
                }
            }
        };
        timeout(PATIENCE, next).await.expect("something is told")
    };
    let store = &opened.one;
    store.publish(key("s"), publication("a", 0, "x")).await.unwrap();
    assert_eq!(next().await, CopyEvent::Of(key("s"), News::Published(node("a"))));
    store.publish(key("s"), publication("b", 0, "refused")).await.unwrap();
    store.want_copy(key("s"), &node("b")).await.unwrap();
    assert_eq!(next().await, CopyEvent::Of(key("s"), News::Wanted(node("b"))));
    store.end(key("s"), EndedBy::Operator).await.unwrap();
    store.end(key("s"), EndedBy::Operator).await.unwrap();
    assert_eq!(next().await, CopyEvent::Of(key("s"), News::Ended));
    store.publish(key("t"), publication("a", 0, "x")).await.unwrap();
    assert_eq!(next().await, CopyEvent::Of(key("t"), News::Published(node("a"))));
}
