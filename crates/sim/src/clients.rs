//! Clients: each follows its script, repeats what is not answered, and remembers what it was told.

use crate::script::{Op, payload};
use crate::server::Release;
use crate::world::{Event, World};
use evoke_core::{CallId, InputId};
use evoke_engine::{CallType, Invocation, Key, MapRequest, NewInput, ResultStatus};
use evoke_store::calls::OutputRow;
use std::collections::BTreeMap;

/// A request, kept until it is answered.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Map(MapRequest),
    Put { call: CallId, inputs: Vec<NewInput> },
    Finish { call: CallId, inputs: u32 },
    Poll { call: CallId, after: Key },
    Cancel { call: CallId, terminate: bool },
    Clear { call: CallId },
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) function: usize,
    ops: Vec<Op>,
    at: usize,
    pub(crate) call: Option<CallId>,
    requests: u64,
    outstanding: Option<(u64, Request)>,
    next_idx: i32,
    /// Acknowledged inputs.
    pub(crate) inputs: BTreeMap<InputId, i32>,
    /// Outputs seen.
    pub(crate) outputs: BTreeMap<InputId, (Key, ResultStatus)>,
    cursor: Key,
    parked: bool,
    pub(crate) cancelled: bool,
}

impl Client {
    pub(crate) fn new(function: usize, ops: Vec<Op>) -> Self {
        Self {
            function,
            ops,
            at: 0,
            call: None,
            requests: 0,
            outstanding: None,
            next_idx: 0,
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            cursor: 0,
            parked: false,
            cancelled: false,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.at >= self.ops.len()
    }
}

impl World {
    /// Whoever waits for this call asks again.
    pub(crate) fn wake_clients(&mut self, call: CallId) {
        for n in 0..self.clients.len() {
            if self.clients[n].parked && self.clients[n].call == Some(call) {
                self.clients[n].parked = false;
                self.after(0, Event::Client(n));
            }
        }
    }

    pub(crate) fn client_timeout(&mut self, n: usize, request: u64) -> Result<(), String> {
        match &self.clients[n].outstanding {
            Some((outstanding, _)) if *outstanding == request => self.transmit(n),
            _ => Ok(()),
        }
    }

    /// The client goes on, unless it waits for an answer.
    pub(crate) fn client_step(&mut self, n: usize) -> Result<(), String> {
        if self.clients[n].is_done() || self.clients[n].outstanding.is_some() {
            return Ok(());
        }
        self.clients[n].parked = false;
        let op = self.clients[n].ops[self.clients[n].at];
        let request = match (op, self.clients[n].call) {
            (Op::Sleep(ms), _) => {
                self.clients[n].at += 1;
                self.after(ms, Event::Client(n));
                return Ok(());
            }
            (Op::Map { map, nobody_waits, inputs }, _) => {
                let inputs = self.new_inputs(n, inputs);
                Request::Map(MapRequest {
                    function_id: self.script.functions[self.clients[n].function].conf.id,
                    call_type: if map { CallType::Map } else { CallType::Unary },
                    invocation: if nobody_waits { Invocation::Async } else { Invocation::Sync },
                    parent_input: None,
                    inputs,
                    return_exceptions: false,
                })
            }
            (_, None) => {
                // The call was refused.
                self.clients[n].at = usize::MAX;
                return Ok(());
            }
            (Op::Put(inputs), Some(call)) => Request::Put { call, inputs: self.new_inputs(n, inputs) },
            (Op::Finish, Some(call)) => Request::Finish { call, inputs: self.clients[n].inputs.len() as u32 },
            (Op::PollAll, Some(call)) => {
                let client = &mut self.clients[n];
                if client.outputs.len() >= client.inputs.len() {
                    client.at += 1;
                    self.after(0, Event::Client(n));
                    return Ok(());
                }
                Request::Poll { call, after: client.cursor }
            }
            (Op::Cancel { terminate }, Some(call)) => Request::Cancel { call, terminate },
            (Op::Clear, Some(call)) => Request::Clear { call },
        };
        let client = &mut self.clients[n];
        client.requests += 1;
        client.outstanding = Some((client.requests, request));
        self.transmit(n)
    }

    fn new_inputs(&mut self, n: usize, count: u32) -> Vec<NewInput> {
        (0..count)
            .map(|_| {
                let idx = self.clients[n].next_idx;
                self.clients[n].next_idx += 1;
                let group = self.random.between(0, 1) as u32;
                NewInput { idx, group, input: payload(&mut self.random) }
            })
            .collect()
    }

    /// Sends the outstanding request, and again if there is no answer.
    fn transmit(&mut self, n: usize) -> Result<(), String> {
        let Some((id, request)) = self.clients[n].outstanding.clone() else { return Ok(()) };
        let patience = if self.engine.is_some() { self.random.between(1_000, 3_000) } else { 300 };
        self.after(patience, Event::ClientTimeout { client: n, request: id });
        self.serve(n, id, &request);
        Ok(())
    }

    /// An answer arrives at a client. One to an earlier request is a repetition.
    pub(crate) fn client_answer(&mut self, answer: Release) -> Result<(), String> {
        let (Release::Mapped { client: n, request: id, .. }
        | Release::Put { client: n, request: id, .. }
        | Release::Done { client: n, request: id }
        | Release::Outputs { client: n, request: id, .. }) = answer
        else {
            return Ok(());
        };
        let Some((_, request)) = self.clients[n].outstanding.take_if(|(outstanding, _)| *outstanding == id)
        else {
            return Ok(());
        };
        // More inputs at once than the bound will never be taken.
        let may_put_later = matches!(&request, Request::Put { inputs, .. }
            if inputs.len() <= self.script.conf.unfinished_inputs_per_call_max);
        let client = &mut self.clients[n];
        let mut pause = 0;
        match answer {
            Release::Mapped { reply, .. } => {
                client.at += 1;
                if let Ok(reply) = reply {
                    client.call = Some(reply.call_id);
                    self.acknowledge(n, reply.inputs)?;
                }
            }
            Release::Put { reply: Ok(ids), .. } => {
                client.at += 1;
                self.acknowledge(n, ids)?;
            }
            Release::Put { reply: Err(error), .. }
                if error.code == evoke_core::ErrorCode::ResourceExhausted && may_put_later =>
            {
                pause = 1_000;
            }
            Release::Put { .. } => client.at += 1,
            Release::Outputs { rows, unfinished, .. } => pause = self.note_outputs(n, rows, unfinished)?,
            _ => {
                client.cancelled |= matches!(request, Request::Cancel { .. });
                client.at += 1;
            }
        }
        self.after(pause, Event::Client(n));
        Ok(())
    }

    fn acknowledge(&mut self, n: usize, ids: Vec<(i32, InputId)>) -> Result<(), String> {
        self.summary.inputs += ids.len() as u64;
        for (idx, id) in ids {
            if self.clients[n].inputs.insert(id, idx).is_some() {
                return Err(format!("{id} was given twice"));
            }
        }
        Ok(())
    }

    fn note_outputs(&mut self, n: usize, rows: Vec<OutputRow>, unfinished: u32) -> Result<u64, String> {
        let client = &mut self.clients[n];
        let nothing = rows.is_empty();
        for row in rows {
            if row.entry <= client.cursor {
                return Err(format!("entry {} came again after {}", row.entry, client.cursor));
            }
            client.cursor = row.entry;
            match client.inputs.get(&row.input_id) {
                Some(idx) if *idx == row.idx => {}
                _ => return Err(format!("an output of {}, which is not the client's", row.input_id)),
            }
            if let Some((entry, _)) = client.outputs.insert(row.input_id, (row.entry, row.status)) {
                return Err(format!("{} has two outputs: {entry} and {}", row.input_id, row.entry));
            }
        }
        if nothing && unfinished == 0 && client.outputs.len() < client.inputs.len() {
            return Err(format!("an output is missing: {} of {}", client.outputs.len(), client.inputs.len()));
        }
        client.parked = nothing;
        Ok(if nothing { 5_000 } else { 0 })
    }
}
