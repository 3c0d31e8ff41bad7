//! Queues: first in, first out within a partition. Who waits for an item is served by the put itself (see
//! [`crate::queue_lines`]); an item is taken out in one transaction with the reply that hands it over.

use crate::data_objects::{creation_info, no_object};
use crate::dicts::too_large;
use crate::queue_lines::{Next, Popped, Popping, Spot, Submit};
use crate::{Control, parse_id, stored};
use bytes::Bytes;
use evoke_core::{QueueId, UnixMs};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::{
    Answer, Grade, ObjectRow, ObjectWrite, PARTITION_BYTES_MAX, PARTITION_ITEMS_MAX, PARTITIONS_MAX, Put,
    QueueWrite,
};
use prost::Message;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of one item.
const ITEM_BYTES_MAX: usize = 1 << 20;
/// Bytes of a partition's key.
const PARTITION_KEY_BYTES_MAX: usize = 64;
/// How long a partition is kept after the last put where the client names no time (seconds): a day.
const PARTITION_TTL_SECS: u64 = 24 * 3600;
/// The longest time that a client may name (seconds): a week.
const PARTITION_TTL_SECS_MAX: u64 = 7 * PARTITION_TTL_SECS;
/// The longest that a get, or a look at the next items, is held.
const POLL_MAX: Duration = Duration::from_secs(60);
/// How long a put that the client repeats because the partition was full is held for room.
const ROOM_WAIT: Duration = Duration::from_secs(20);
/// Items, and bytes of them, that one look at the next items shows.
const NEXT_ITEMS: (usize, usize) = (100, 4 << 20);

/// A partition as wakers know it; two that share a number are woken together.
pub(crate) type SpotKey = (QueueId, u64);

fn key_of(spot: &Spot) -> SpotKey {
    let mut hasher = DefaultHasher::new();
    spot.1.hash(&mut hasher);
    (spot.0, hasher.finish())
}

fn metadata(row: &ObjectRow<evoke_core::id::Queue>) -> Option<api::QueueMetadata> {
    Some(api::QueueMetadata { name: row.name.clone().unwrap_or_default(), creation_info: creation_info(row) })
}

fn spot(queue: &str, partition: Bytes) -> Result<Spot, Status> {
    if partition.len() > PARTITION_KEY_BYTES_MAX {
        return Err(Status::invalid(format!(
            "A partition's key has {} bytes; at most {PARTITION_KEY_BYTES_MAX} are allowed",
            partition.len()
        )));
    }
    Ok((parse_id(queue)?, partition))
}

fn held(seconds: f32) -> Duration {
    Duration::try_from_secs_f32(seconds).unwrap_or_default().min(POLL_MAX)
}

fn kept_get(popped: &Popped) -> Option<Vec<u8>> {
    let values = popped.as_ref().filter(|values| !values.is_empty())?;
    Some(api::QueueGetResponse { values: values.clone() }.encode_to_vec())
}

impl Control {
    pub(crate) async fn queue_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::QueueGetOrCreateRequest,
    ) -> Result<api::QueueGetOrCreateResponse, Status> {
        let name = (request.deployment_name.as_str(), request.environment_name.as_str());
        let creation = request.object_creation_type();
        self.object_get_or_create(
            &context,
            name,
            creation,
            |_| Vec::new(),
            |row| api::QueueGetOrCreateResponse { queue_id: row.id.to_string(), metadata: metadata(row) },
        )
        .await
    }

    pub(crate) async fn queue_get_by_id(
        self: Arc<Self>,
        _context: CallContext,
        request: api::QueueGetByIdRequest,
    ) -> Result<api::QueueGetByIdResponse, Status> {
        let row = self.object(parse_id(&request.queue_id)?).await?;
        Ok(api::QueueGetByIdResponse { queue_id: row.id.to_string(), metadata: metadata(&row) })
    }

    pub(crate) async fn queue_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::QueueListRequest,
    ) -> Result<api::QueueListResponse, Status> {
        let (rows, environment_name) =
            self.object_page(&request.environment_name, request.pagination).await?;
        let most = u64::try_from(request.total_size_limit).ok().filter(|most| *most > 0).unwrap_or(u64::MAX);
        let now = self.now();
        let mut queues = Vec::with_capacity(rows.len());
        for row in rows {
            // One that was deleted meanwhile is not there.
            let Some(size) = self.store.queues().size(row.id, now).await.map_err(stored)? else { continue };
            queues.push(api::queue_list_response::QueueInfo {
                name: row.name.clone().unwrap_or_default(),
                created_at: row.created_at.as_secs_f64(),
                num_partitions: i32::try_from(size.partitions).unwrap_or(i32::MAX),
                total_size: i32::try_from(size.items.min(most)).unwrap_or(i32::MAX),
                queue_id: row.id.to_string(),
                metadata: metadata(&row),
            });
        }
        Ok(api::QueueListResponse { queues, environment_name })
    }

    pub(crate) async fn queue_heartbeat(
        self: Arc<Self>,
        _context: CallContext,
        request: api::QueueHeartbeatRequest,
    ) -> Result<(), Status> {
        let id: QueueId = parse_id(&request.queue_id)?;
        self.object_heartbeat(id).await
    }

    pub(crate) async fn queue_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::QueueDeleteRequest,
    ) -> Result<(), Status> {
        let id: QueueId = parse_id(&request.queue_id)?;
        self.object_write(&context, id, ObjectWrite::Delete { id: id.to_string() }).await?;
        self.queue_gone(id);
        Ok(())
    }

    /// Tells those who wait at a queue that it is gone.
    pub(crate) fn queue_gone(&self, id: QueueId) {
        self.queue_lines.wake(&self.to_queues(), id);
        self.queue_peeks.wake_all();
        self.queue_room.wake_all();
    }

    pub(crate) async fn queue_clear(
        self: Arc<Self>,
        context: CallContext,
        request: api::QueueClearRequest,
    ) -> Result<(), Status> {
        let (queue, partition) = spot(&request.queue_id, request.partition_key)?;
        if request.all_partitions {
            self.object_write(&context, queue, ObjectWrite::Clear { id: queue.to_string() }).await?;
        } else {
            self.object(queue).await?;
            let write = QueueWrite::Clear { queue, partition };
            self.commit(&context, vec![write.into()], Grade::Synced, &()).await?;
        }
        self.queue_room.wake_all();
        Ok(())
    }

    pub(crate) async fn queue_len(
        self: Arc<Self>,
        _context: CallContext,
        request: api::QueueLenRequest,
    ) -> Result<api::QueueLenResponse, Status> {
        let (queue, partition) = spot(&request.queue_id, request.partition_key)?;
        let now = self.now();
        let len = if request.total {
            self.store.queues().size(queue, now).await.map_err(stored)?.map(|size| size.items)
        } else {
            self.store.queues().len(queue, &partition, now).map_err(stored)?
        };
        self.last_writes.settled(&self.store, &queue.to_string()).await.map_err(stored)?;
        let len = len.ok_or_else(|| no_object(queue))?;
        Ok(api::QueueLenResponse { len: i32::try_from(len).unwrap_or(i32::MAX) })
    }

    fn to_queues(&self) -> Submit<'_> {
        Submit { store: &self.store, last_writes: &self.last_writes, now: self.now() }
    }

    pub(crate) async fn queue_put(
        self: Arc<Self>,
        context: CallContext,
        request: api::QueuePutRequest,
    ) -> Result<(), Status> {
        let spot = spot(&request.queue_id, request.partition_key)?;
        for value in &request.values {
            if value.len() > ITEM_BYTES_MAX {
                return Err(too_large("An item of a Queue", value.len(), ITEM_BYTES_MAX));
            }
        }
        let bytes: usize = request.values.iter().map(Bytes::len).sum();
        if bytes > PARTITION_BYTES_MAX {
            return Err(too_large("A put to a Queue", bytes, PARTITION_BYTES_MAX));
        }
        let ttl_ms = 1000 * ttl_secs(request.partition_ttl_seconds)?;
        // Only a client that blocks comes back with a put that found no room.
        let repeated = context.header("x-retry-attempt").is_some_and(|attempt| attempt != "0");
        if repeated && request.values.len() > PARTITION_ITEMS_MAX {
            return Err(Status::invalid(format!(
                "{} items never fit in a partition, which holds {PARTITION_ITEMS_MAX}. Put them in parts",
                request.values.len()
            )));
        }
        // One with a deadline must hear of the full queue before that, and asks often enough by itself.
        let hold = repeated && context.header("grpc-timeout").is_none();
        let until = Instant::now() + if hold { ROOM_WAIT } else { Duration::ZERO };
        loop {
            let room = hold.then(|| self.queue_room.register(key_of(&spot)));
            let woken = room.as_ref().map(|room| room.woken());
            let outcome = self.put_once(&context, &spot, request.values.clone(), ttl_ms).await?;
            let full = match outcome {
                Put::Done => return Ok(()),
                Put::PartitionFull => format!(
                    "The Queue's partition is full: it holds {PARTITION_ITEMS_MAX} items of {PARTITION_BYTES_MAX} \
                     bytes together at most. Take some out first"
                ),
                Put::QueueFull => {
                    format!("The Queue has {PARTITIONS_MAX} partitions with items, the most it may")
                }
            };
            match woken {
                Some(woken) if Instant::now() < until => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                _ => return Err(Status::new(Code::ResourceExhausted, full)),
            }
        }
    }

    async fn put_once(
        self: &Arc<Self>,
        context: &CallContext,
        spot: &Spot,
        values: Vec<Bytes>,
        ttl_ms: u64,
    ) -> Result<Put, Status> {
        if self.store.is_saturated() {
            self.store.room().await;
        }
        let now = self.now();
        let count = values.len();
        let encode = |put: &Option<Put>| (*put == Some(Put::Done)).then(Vec::new);
        let answer = Answer::new(self.keep(context, encode));
        let (queue, partition) = spot.clone();
        let expires_at = UnixMs(now.0 + ttl_ms);
        let put = QueueWrite::Put { queue, partition, values, now, expires_at, answer: answer.clone() };
        let ticket = self.queue_lines.put(&self.to_queues(), spot, put.into(), count);
        let ticket = ticket.ok_or_else(|| Status::unavailable("The server is shutting down"))?;
        let key = key_of(spot);
        // In a task of its own: those who look at the next items are told though this client has gone.
        let me = self.clone();
        let stored_put = tokio::spawn(async move {
            let result = ticket.await;
            me.queue_peeks.wake(key);
            result
        });
        let result = stored_put.await.map_err(|ended| Status::internal(format!("the put ended: {ended}")))?;
        result.map_err(stored)?;
        answer.take().flatten().ok_or_else(|| no_object(queue))
    }

    pub(crate) async fn queue_get(
        self: Arc<Self>,
        context: CallContext,
        request: api::QueueGetRequest,
    ) -> Result<api::QueueGetResponse, Status> {
        let spot = spot(&request.queue_id, request.partition_key)?;
        let most = request.n_values.clamp(1, PARTITION_ITEMS_MAX as i32) as u32;
        let keep = self.keep(&context, kept_get);
        if self.store.is_saturated() {
            self.store.room().await;
        }
        let hold = held(request.timeout);
        let values = if hold.is_zero() {
            let len = self.store.queues().len(spot.0, &spot.1, self.now()).map_err(stored)?;
            if len.ok_or_else(|| no_object(spot.0))? == 0 {
                self.last_writes.settled(&self.store, &spot.0.to_string()).await.map_err(stored)?;
                Vec::new()
            } else {
                let popping = self.to_queues().pop(&spot, most, keep);
                self.taken(&spot, popping).await?
            }
        } else {
            self.wait_in_line(&spot, most, keep, Instant::now() + hold).await?
        };
        if !values.is_empty() {
            self.queue_room.wake(key_of(&spot));
        }
        Ok(api::QueueGetResponse { values })
    }

    async fn wait_in_line(
        &self,
        spot: &Spot,
        most: u32,
        keep: Option<evoke_store::Keep<Popped>>,
        until: Instant,
    ) -> Result<Vec<Bytes>, Status> {
        let (in_line, first) = self.queue_lines.join(&self.to_queues(), spot.clone(), most, keep)?;
        let mut popping = Some(first);
        loop {
            let values = self.taken(spot, popping).await?;
            if !values.is_empty() {
                return Ok(values);
            }
            popping = match in_line.came_back_empty(&self.to_queues()) {
                Some(Next::Pop(popping)) => Some(popping),
                Some(Next::Wait(mut wait)) => {
                    tokio::select! {
                        popping = &mut wait => popping.ok(),
                        () = tokio::time::sleep_until(until) => {
                            in_line.leave();
                            // A put may have served this place at the last moment.
                            return match wait.try_recv() {
                                Ok(popping) => self.taken(spot, Some(popping)).await,
                                Err(_) => Ok(Vec::new()),
                            };
                        }
                    }
                }
                None => None,
            };
        }
    }

    /// The items of a pop, once they are out for good.
    async fn taken(&self, spot: &Spot, popping: Option<Popping>) -> Result<Vec<Bytes>, Status> {
        let Popping { ticket, answer } =
            popping.ok_or_else(|| Status::unavailable("The server is shutting down"))?;
        ticket.await.map_err(stored)?;
        answer.take().flatten().ok_or_else(|| no_object(spot.0))
    }

    pub(crate) async fn queue_next_items(
        self: Arc<Self>,
        _context: CallContext,
        request: api::QueueNextItemsRequest,
    ) -> Result<api::QueueNextItemsResponse, Status> {
        let spot = spot(&request.queue_id, request.partition_key)?;
        let after = match request.last_entry_id.as_str() {
            "" => 0,
            text => text.parse().map_err(|_| Status::invalid(format!("'{text}' is not an item's id")))?,
        };
        let until = Instant::now() + held(request.item_poll_timeout);
        let peek = self.queue_peeks.register(key_of(&spot));
        loop {
            let woken = peek.woken();
            let (queue, partition) = spot.clone();
            let items =
                self.store.queues().items_after(queue, partition, after, self.now(), NEXT_ITEMS).await;
            let items = items.map_err(stored)?.ok_or_else(|| no_object(queue))?;
            self.last_writes.settled(&self.store, &queue.to_string()).await.map_err(stored)?;
            if !items.is_empty() || Instant::now() >= until {
                let items =
                    items.into_iter().map(|(n, value)| api::QueueItem { value, entry_id: n.to_string() });
                return Ok(api::QueueNextItemsResponse { items: items.collect() });
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

fn ttl_secs(asked: i32) -> Result<u64, Status> {
    match u64::try_from(asked) {
        Ok(0) => Ok(PARTITION_TTL_SECS),
        Ok(secs) if secs <= PARTITION_TTL_SECS_MAX => Ok(secs),
        _ => Err(Status::invalid(format!(
            "partition_ttl is {asked} s; it must be between 1 s and {PARTITION_TTL_SECS_MAX} s"
        ))),
    }
}
