//! What is to be done about one session on one node: a table, without any I/O.

use affinity::NodeId;

use super::snapshot::Digest;
use crate::store::Copy;

/// The session's files on the node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) digest: Digest,
    pub(super) anonymous: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Disk and store agree: note that the node has this version.
    Agree,
    /// The node changed it, counted from this version.
    Publish(u64),
    /// The node has somebody's session where the owner has nobody's: it must become the owner.
    TakeOver,
    /// The store's copy goes to the disk.
    Write,
    /// The files are of no use any more.
    Remove,
    /// The files were there, and are gone.
    Vanished,
}

/// Decides for the node `me`.
///
/// `had`: the version that its disk agreed with last, 0 for none. `owned`: the last epoch in which it owned the
/// session, 0 for none. `deleted`: there were files, and somebody
/// else than this process took them away. `copy`: what the store has, if anything. `holds`: whether the node
/// is to have a copy.
pub(super) fn decide(
    me: &NodeId,
    local: Option<Local>,
    had: u64,
    owned: u64,
    deleted: bool,
    copy: Option<&Copy>,
    holds: bool,
) -> Action {
    let Some(copy) = copy else {
        // The store never had it, or lost its memory.
        return match local {
            Some(_) => Action::Publish(had),
            None if deleted => Action::Vanished,
            None => Action::Nothing,
        };
    };
    let owns = copy.owner.node == *me;
    // What its Odoo was writing when the session moved; see `Copy::takes`.
    let owned_last = owned > 0 && owned + 1 == copy.owner.epoch;
    match local {
        Some(_) if copy.ended => Action::Remove,
        None if copy.ended => Action::Nothing,
        None if deleted => Action::Vanished,
        // Nobody published yet: that is the owner's to do.
        Some(_) if copy.version == 0 => {
            if owns {
                Action::Publish(0)
            } else {
                Action::Nothing
            }
        }
        None if copy.version == 0 => Action::Nothing,

        Some(local) if local.digest == copy.digest => Action::Agree,
        // Odoo saves an anonymous session under the id of one that it does not have, and it may come first.
        Some(local) if copy.anonymous && !local.anonymous => {
            if owns {
                Action::Publish(copy.version)
            } else {
                Action::TakeOver
            }
        }
        // A node that was away has another version to start from; and Odoo may save an anonymous session
        // under the id of somebody's that it does not have.
        Some(local)
            if (owns || owned_last) && had == copy.version && (copy.anonymous || !local.anonymous) =>
        {
            Action::Publish(copy.version)
        }
        Some(_) => {
            if owns || holds {
                Action::Write
            } else {
                Action::Remove
            }
        }

        None => {
            if owns || holds {
                Action::Write
            } else {
                Action::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use affinity::wire::Owner;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn owner(name: &str) -> Owner {
        Owner { node: node(name), epoch: 1 }
    }

    fn copy(of: &str, version: u64) -> Copy {
        Copy { version, digest: [1; 16], anonymous: false, ..Copy::none_yet(owner(of)) }
    }

    fn local(digest: u8) -> Option<Local> {
        Some(Local { digest: [digest; 16], anonymous: false })
    }

    #[track_caller]
    fn expect(action: Action, local: Option<Local>, had: u64, copy: Option<&Copy>, holds: bool) {
        assert_eq!(decide(&node("me"), local, had, 0, false, copy, holds), action);
    }

    #[test]
    fn what_the_store_does_not_know_is_published() {
        expect(Action::Publish(0), local(1), 0, None, false);
        expect(Action::Publish(4), local(1), 4, None, false);
        expect(Action::Nothing, None, 0, None, true);
        expect(Action::Publish(0), local(1), 0, Some(&copy("me", 0)), false);
        expect(Action::Nothing, local(1), 0, Some(&copy("other", 0)), true);
        expect(Action::Nothing, None, 0, Some(&copy("me", 0)), true);
    }

    #[test]
    fn the_owner_s_change_is_published_unless_it_was_away() {
        let copy = copy("me", 3);
        expect(Action::Agree, local(1), 3, Some(&copy), true);
        expect(Action::Agree, local(1), 0, Some(&copy), true);
        expect(Action::Publish(3), local(2), 3, Some(&copy), true);
        expect(Action::Write, local(2), 2, Some(&copy), true);
        expect(Action::Write, local(2), 0, Some(&copy), false);
        let nobody = Some(Local { digest: [2; 16], anonymous: true });
        expect(Action::Write, nobody, 3, Some(&copy), true);
        let of_nobody = Copy { anonymous: true, ..copy };
        expect(Action::Publish(3), nobody, 3, Some(&of_nobody), true);
        expect(Action::Publish(3), local(2), 0, Some(&of_nobody), true);
        expect(Action::TakeOver, local(2), 0, Some(&Copy { owner: owner("other"), ..of_nobody }), true);
    }

    #[test]
    fn another_node_s_change_gives_way() {
        let copy = copy("other", 3);
        for had in [0, 2, 3] {
            expect(Action::Write, local(2), had, Some(&copy), true);
            expect(Action::Remove, local(2), had, Some(&copy), false);
            expect(Action::Agree, local(1), had, Some(&copy), false);
        }
    }

    #[test]
    fn what_it_was_writing_when_the_session_moved_is_published() {
        let copy = Copy { owner: Owner { node: node("other"), epoch: 5 }, ..copy("other", 3) };
        let decide = |local, had, owned| decide(&node("me"), local, had, owned, false, Some(&copy), false);
        assert_eq!(decide(local(2), 3, 4), Action::Publish(3));
        assert_eq!(decide(local(1), 3, 4), Action::Agree);
        let nobody = Some(Local { digest: [2; 16], anonymous: true });
        for (local, had, owned) in [(local(2), 2, 4), (local(2), 3, 3), (local(2), 3, 0), (nobody, 3, 4)] {
            assert_eq!(decide(local, had, owned), Action::Remove);
        }
    }

    #[test]
    fn what_is_gone_was_there() {
        let gone = |copy: Option<&Copy>| decide(&node("me"), None, 3, 0, true, copy, true);
        assert_eq!(gone(None), Action::Vanished);
        for owner in ["me", "other"] {
            // Also if the store was filled again meanwhile, or only knows a claim.
            for version in [0, 2, 3, 4] {
                assert_eq!(gone(Some(&copy(owner, version))), Action::Vanished);
            }
            assert_eq!(gone(Some(&Copy { ended: true, ..copy(owner, 3) })), Action::Nothing);
            expect(Action::Write, None, 2, Some(&copy(owner, 3)), true);
            expect(Action::Write, None, 0, Some(&copy(owner, 3)), true);
        }
        expect(Action::Nothing, None, 0, Some(&copy("other", 3)), false);
    }

    #[test]
    fn what_ended_stays_ended() {
        for owner in ["me", "other"] {
            let ended = Copy { ended: true, ..copy(owner, 0) };
            expect(Action::Remove, local(1), 3, Some(&ended), true);
            expect(Action::Nothing, None, 3, Some(&ended), true);
        }
    }
}
