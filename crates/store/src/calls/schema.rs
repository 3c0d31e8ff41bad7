//! The tables of calls.

/// Tables and indexes, in the form of the first migration. Indexes hold integers only, and grow at their
/// right-hand edge.
pub const SCHEMA: &str = "
CREATE TABLE calls (
    key INTEGER PRIMARY KEY,
    salt INTEGER NOT NULL,
    function TEXT NOT NULL,
    app TEXT NOT NULL,
    call_type INTEGER NOT NULL,
    invocation INTEGER NOT NULL,
    parent_input TEXT,
    return_exceptions INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX calls_of_function ON calls (function, key);

-- Calls that may get more inputs. Any other call is unfinished exactly while an input of it is pending.
CREATE TABLE open_calls (
    call INTEGER PRIMARY KEY,
    declared_inputs INTEGER
) STRICT;

CREATE TABLE inputs (
    key INTEGER PRIMARY KEY,
    salt INTEGER NOT NULL,
    call INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    grp INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    payload BLOB NOT NULL
) STRICT;
CREATE INDEX inputs_of_call ON inputs (call);

-- One row for each input that has not ended.
CREATE TABLE pending (
    input INTEGER PRIMARY KEY,
    retry_count INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    losses INTEGER NOT NULL DEFAULT 0,
    not_before_ms INTEGER,
    cancelled_ms INTEGER
) STRICT;

CREATE TABLE attempts (
    key INTEGER PRIMARY KEY,
    input INTEGER NOT NULL,
    task TEXT NOT NULL,
    retry_count INTEGER NOT NULL,
    poll INTEGER NOT NULL,
    claim INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    ended_as INTEGER
) STRICT;
CREATE INDEX attempts_of_input ON attempts (input);

CREATE TABLE outputs (
    entry INTEGER PRIMARY KEY,
    call INTEGER NOT NULL,
    input INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    status INTEGER NOT NULL,
    retry_count INTEGER NOT NULL,
    attempt INTEGER,
    task TEXT,
    started_ms INTEGER,
    finished_ms INTEGER NOT NULL,
    text TEXT,
    result BLOB
) STRICT;
CREATE INDEX outputs_of_call ON outputs (call);

CREATE TABLE chunks (
    key INTEGER PRIMARY KEY,
    call INTEGER NOT NULL,
    direction INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX chunks_of_call ON chunks (call, direction, idx);

CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    function TEXT NOT NULL,
    app TEXT NOT NULL,
    definition TEXT NOT NULL,
    generation INTEGER NOT NULL,
    worker INTEGER NOT NULL,
    reason TEXT NOT NULL,
    start_path INTEGER NOT NULL,
    runs_with BLOB NOT NULL,
    stop INTEGER NOT NULL,
    ended_ms INTEGER,
    end_text TEXT,
    exit_code INTEGER,
    exit_signal INTEGER,
    oom INTEGER,
    cpu_ms INTEGER NOT NULL DEFAULT 0,
    memory_peak_bytes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_alive ON tasks (id) WHERE ended_ms IS NULL;
CREATE INDEX tasks_ended ON tasks (ended_ms) WHERE ended_ms IS NOT NULL;
CREATE INDEX tasks_of_app ON tasks (app, id);

CREATE TABLE task_phases (
    task TEXT NOT NULL,
    phase INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (task, phase)
) STRICT, WITHOUT ROWID;
";

/// GPUs that a container owns: their names with spaces between.
pub const TASK_GPUS: &str = "
ALTER TABLE tasks ADD COLUMN gpus TEXT NOT NULL DEFAULT '';
";

/// Who was called by whom: only calls made by code in containers are in it.
pub const PARENT_INDEX: &str = "
CREATE INDEX calls_of_parent ON calls (parent_input) WHERE parent_input IS NOT NULL;
";
