//! What Redis does in one step, in Lua.

use std::sync::LazyLock;

use redis::Script;

/// Tells a change: KEYS `changes` and `told`, then the fields of the entry. Each entry carries its
/// number, so that whoever reads the stream sees a gap.
const TELL: &str = r#"
local function tell(changes, told, ...)
    local number = redis.call('INCR', told)
    redis.call('XADD', changes, 'MAXLEN', '~', 10000, '*', 'n', number, ...)
end
"#;

fn script(text: &str) -> Script {
    Script::new(&format!("{TELL}{text}"))
}

/// Claims a session, as `decide` of the parent module does.
///
/// KEYS 1: the session's hash of `node` and `epoch`; 2 and 3: `changes` and `told`, where they are in
/// the same slot. ARGV 1: the node; 2: the epoch it expects; 3: the session's key; 4: how long a
/// record lives at least, in milliseconds. Returns whether it is granted, the owner, its epoch, and
/// whether a change is yet to be told.
pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
local node, epoch = unpack(redis.call('HMGET', KEYS[1], 'node', 'epoch'))
local granted, moved = 1, 0
if node and node ~= ARGV[1] and epoch ~= ARGV[2] then
    return {0, node, epoch, 0}
end
if node ~= ARGV[1] then
    epoch = string.format('%.0f', (node and epoch or ARGV[2]) + 1)
    node = ARGV[1]
    redis.call('HSET', KEYS[1], 'node', node, 'epoch', epoch)
    if epoch ~= '1' then
        moved = 1
        if KEYS[2] then
            tell(KEYS[2], KEYS[3], 'key', ARGV[3], 'node', node, 'epoch', epoch)
            moved = 0
        end
    end
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return {1, node, epoch, moved}
"#,
    )
});

/// Tells a change that [`CLAIM`] could not tell.
///
/// KEYS 1: `changes`; 2: `told`. ARGV: the entry's fields.
pub(super) static ANNOUNCE: LazyLock<Script> =
    LazyLock::new(|| script("tell(KEYS[1], KEYS[2], unpack(ARGV))"));

/// Reads an owner, and prolongs its record if that was not done for a while.
///
/// KEYS 1: the session's hash. ARGV 1: the lifetime in milliseconds; 2: the time to live under which
/// to prolong. Returns the owner and its epoch, or nils.
pub(super) static OWNER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local owner = redis.call('HMGET', KEYS[1], 'node', 'epoch')
if owner[1] and redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return owner
"#,
    )
});

/// Where a reader of the changes stands, and the store's generation, which is made if there is none.
///
/// KEYS 1: `generation`; 2: `told`; 3: `changes`. ARGV 1: a random number. Returns the generation, the
/// number of changes told, and the id of the last entry.
pub(super) static PLACE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
redis.call('SET', KEYS[1], ARGV[1], 'NX')
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
return {redis.call('GET', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or 0), last and last[1] or '0-0'}
"#,
    )
});

/// Registers a node, and tells it where that is news.
///
/// KEYS 1: `nodes`; 2: `changes`; 3: `told`. ARGV 1: the node; 2: what is told of it, the same text
/// as long as nothing changes and without a space; 3: how it does.
pub(super) static REGISTER: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
local before = redis.call('HGET', KEYS[1], ARGV[1])
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s %s %s', now[1], ARGV[2], ARGV[3]))
if not before or before:match('^%S+ (%S+)') ~= ARGV[2] then
    tell(KEYS[2], KEYS[3], 'nodes', ARGV[1])
end
"#,
    )
});

/// Notes what an operator says of a node, or puts it back, and tells it where that is news.
///
/// KEYS 1: `drains`; 2: `changes`; 3: `told`. ARGV 1: the node; 2: 1 if it is drained; 3: when that was said;
/// 4: 1 if it is said now, and thus later than what is there. Returns when it was said, or 0 if something as
/// late is there.
pub(super) static DRAIN: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
local before, at = (redis.call('HGET', KEYS[1], ARGV[1]) or ''):match('^([01]) (%d+)$')
local said = tonumber(ARGV[3])
if at and tonumber(at) >= said then
    if ARGV[4] ~= '1' then
        return 0
    end
    said = at + 1
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s %.0f', ARGV[2], said))
if (before or '0') ~= ARGV[2] then
    tell(KEYS[2], KEYS[3], 'nodes', ARGV[1])
end
return said
"#,
    )
});

/// Takes in what a sidecar tells, and reads all that is known of nodes, without what is too old.
///
/// KEYS 1: `nodes`; 2: `drains`; 3: `sidecars`; 4: `cron`. ARGV 1: the sidecar; 2: what it tells; 3: how old
/// that may be and 4: a node, in seconds. Returns the time in seconds, the nodes, what operators said, what
/// sidecars told, and who has the lease of scheduled jobs for how many milliseconds, if anybody.
pub(super) static ROSTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[3], ARGV[1], string.format('%d %s', now, ARGV[2]))
local function fresh(key, age)
    local all, kept = redis.call('HGETALL', key), {}
    for at = 1, #all, 2 do
        local beat, rest = all[at + 1]:match('^(%d+)(.*)$')
        if tonumber(beat or 0) > now then
            -- The clock was put back: what was said before counts as said now, and no longer.
            beat, all[at + 1] = now, string.format('%d%s', now, rest)
            redis.call('HSET', key, all[at], all[at + 1])
        end
        if now - tonumber(beat or 0) > tonumber(age) then
            redis.call('HDEL', key, all[at])
        else
            table.insert(kept, all[at])
            table.insert(kept, all[at + 1])
        end
    end
    return kept
end
local cron = redis.call('GET', KEYS[4])
cron = cron and {cron:match('^%S+ (.*)$'), redis.call('PTTL', KEYS[4])}
return {now, fresh(KEYS[1], ARGV[4]), redis.call('HGETALL', KEYS[2]), fresh(KEYS[3], ARGV[3]), cron}
"#,
    )
});

/// Gives the lease of scheduled jobs, or takes it back, as `Lease` of the parent module does.
///
/// KEYS 1: `cron`; 2: `remembers`. ARGV 1: the asker's token; 2: its name; 3: for how long, in milliseconds;
/// 4: 1 if it has the lease. Returns whether it is granted, and who has it for how many milliseconds.
pub(super) static LEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local present = redis.call('GET', KEYS[1])
local token, name
if present then
    token, name = present:match('^(%S+) (.*)$')
end
if token and token ~= ARGV[1] then
    return {0, {name, redis.call('PTTL', KEYS[1])}}
end
local lasts = tonumber(ARGV[3])
if lasts == 0 then
    redis.call('DEL', KEYS[1])
    return {1, false}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], string.format('%.0f', now), 'NX')
if tonumber(redis.call('GET', KEYS[2])) > now then
    -- The clock was put back.
    redis.call('SET', KEYS[2], string.format('%.0f', now))
end
if not token and ARGV[4] ~= '1' and now - redis.call('GET', KEYS[2]) < lasts then
    return {0, false}
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', lasts)
return {1, {ARGV[2], lasts}}
"#,
    )
});

/// Publishes a copy, as `copies::publish` of the parent module does.
///
/// KEYS 1: the session's hash; 2 and 3: `copies` and `copied`, where they are in the same slot. ARGV 1:
/// the node; 2: the epoch it knew last, or 0; 3: the version it started from; 4: the digest; 5: 1 if anonymous; 6: the
/// seal; 7: the session's key; 8: how long the record lives at least, in milliseconds; 9: the proofs, with
/// spaces between them. Returns whether it is stored, the owner, its epoch and the version.
pub(super) static PUBLISH: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
local node, epoch, version, anonymous, ended =
    unpack(redis.call('HMGET', KEYS[1], 'node', 'epoch', 'version', 'anonymous', 'ended'))
if not node then
    node, epoch, version = ARGV[1], ARGV[2] == '0' and '1' or ARGV[2], ARGV[3]
end
version = version or '0'
local may = node == ARGV[1] or (ARGV[3] ~= '0' and ARGV[2] ~= '0' and ARGV[2] + 1 == tonumber(epoch))
if ended or not may or version ~= ARGV[3] or (anonymous == '0' and ARGV[5] == '1') then
    return {0, '', 0, 0}
end
version = string.format('%.0f', version + 1)
redis.call('HSET', KEYS[1], 'node', node, 'epoch', epoch, 'version', version, 'digest', ARGV[4],
    'anonymous', ARGV[5], 'seal', ARGV[6], 'proofs', ARGV[9], 'at:' .. ARGV[1], version)
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[8]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[8])
end
if KEYS[2] then
    tell(KEYS[2], KEYS[3], 'key', ARGV[7], 'published', ARGV[1])
end
return {1, node, tonumber(epoch), tonumber(version)}
"#,
    )
});

/// Notes which version a node has on its disk, if the session is known.
///
/// KEYS 1: the session's hash. ARGV 1: the node; 2: the version.
pub(super) static HAS_COPY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
if redis.call('HEXISTS', KEYS[1], 'version') == 1 then
    redis.call('HSET', KEYS[1], 'at:' .. ARGV[1], ARGV[2])
end
"#,
    )
});

/// Ends a session, as `copies::end` of the parent module does. What stays says so to whoever comes back
/// with its files.
///
/// KEYS 1: the session's hash; 2 and 3: `copies` and `copied`, where they are in the same slot. ARGV 1:
/// the node, or nothing; 2: the version it had; 3: the session's key; 4: how long to remember, in
/// milliseconds; 5: who saw it end, if the record may be missing; 6: the proof of who left it, or nothing.
/// Returns whether it was ended now.
pub(super) static END: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
local node, epoch, version, ended, proofs =
    unpack(redis.call('HMGET', KEYS[1], 'node', 'epoch', 'version', 'ended', 'proofs'))
if ARGV[6] ~= '' and not (proofs and proofs:find(ARGV[6], 1, true)) then
    return 0
end
if not node and ARGV[5] ~= '' then
    node, epoch = ARGV[5], '1'
end
if ARGV[5] == '' and not version then
    return 0
end
if not node or ended or (ARGV[1] ~= '' and ARGV[1] ~= node and (version or '0') ~= ARGV[2]) then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'node', node, 'epoch', epoch, 'ended', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if KEYS[2] then
    tell(KEYS[2], KEYS[3], 'key', ARGV[3], 'ended', '1')
end
return 1
"#,
    )
});

/// What changed of a replicated directory, from the beginning if the store has another memory by now. It has
/// also if somebody knows of more than it (a replica that was behind).
///
/// KEYS 1: the hash of its files, with `generation` and `told`; 2: `order`. ARGV 1: the generation and 2: the
/// number of the change after which to go on; 3: how many at most; 4: a random number. Returns the generation,
/// and the number, the field and the value of each.
pub(super) static FILES: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local generation = redis.call('HGET', KEYS[1], 'generation')
if not generation then
    generation = ARGV[4]
    redis.call('HSET', KEYS[1], 'generation', generation)
end
if generation == ARGV[1] and tonumber(ARGV[2]) > tonumber(redis.call('HGET', KEYS[1], 'told') or 0) then
    generation = ARGV[4]
    redis.call('HSET', KEYS[1], 'generation', generation)
end
local after = generation == ARGV[1] and ARGV[2] or '0'
local changed = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local found = {}
for at = 1, #changed, 2 do
    local value = redis.call('HGET', KEYS[1], changed[at])
    if value then
        table.insert(found, {tonumber(changed[at + 1]), changed[at], value})
    end
end
return {generation, found}
"#,
    )
});

/// Puts a file's record in the place of an older one, and forgets some of what has long been gone.
///
/// KEYS 1: the hash of the directory's files; 2: `order`, which change of all was each file's last; 3: `gone`,
/// when those went that did. ARGV 1: the field; 2: the stamp; 3: the seal; 4: 1 if it is gone; 5: for how many
/// seconds that is remembered. Returns what is there if that is not older.
pub(super) static PUT_FILE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local present = redis.call('HGET', KEYS[1], ARGV[1])
if present and present:match('^%S+') >= ARGV[2] then
    return present
end
local number = (redis.call('HGET', KEYS[1], 'told') or 0) + 1
redis.call('HSET', KEYS[1], 'told', string.format('%.0f', number),
    ARGV[1], ARGV[2] .. ' ' .. ARGV[4] .. ' ' .. ARGV[3])
redis.call('ZADD', KEYS[2], number, ARGV[1])
local now = tonumber(redis.call('TIME')[1])
if ARGV[4] == '1' then
    redis.call('ZADD', KEYS[3], now, ARGV[1])
else
    redis.call('ZREM', KEYS[3], ARGV[1])
end
for _, field in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[5], 'LIMIT', 0, 100)) do
    redis.call('HDEL', KEYS[1], field)
    redis.call('ZREM', KEYS[2], field)
    redis.call('ZREM', KEYS[3], field)
end
return false
"#,
    )
});

/// Tries every command that the scripts use, on keys of no meaning, which it removes.
///
/// KEYS: a text, a hash, a set, a sorted set and a stream. Returns each command that failed, and why.
pub(super) static TRY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local refused = {}
local function try(command, ...)
    local answer = redis.pcall(command, ...)
    if type(answer) == 'table' and answer.err then
        table.insert(refused, {command, answer.err})
    end
end
local text, hash, set, order, stream = unpack(KEYS)
-- First what needs memory: after any other write a script is let go on without.
try('SET', text, '1')
try('INCR', text)
try('HSET', hash, 'a', '1')
try('SADD', set, 'a')
try('ZADD', order, 1, 'a')
try('XADD', stream, 'MAXLEN', '~', 1, '*', 'a', '1')
try('TIME')
try('GET', text)
try('PEXPIRE', text, 60000)
try('PTTL', text)
try('HGET', hash, 'a')
try('HMGET', hash, 'a')
try('HGETALL', hash)
try('HEXISTS', hash, 'a')
try('HDEL', hash, 'a')
try('SMEMBERS', set)
try('SREM', set, 'a')
try('ZRANGEBYSCORE', order, 0, 1)
try('ZREM', order, 'a')
try('XREVRANGE', stream, '+', '-', 'COUNT', 1)
try('DEL', text, hash, set, order, stream)
return refused
"#,
    )
});
