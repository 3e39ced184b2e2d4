import { describe, expect, test } from "vitest";
import { BareConnection } from "../../../../test/support/h2-connection.ts";
import {
  block,
  data,
  flags,
  frame,
  headers,
  preface,
  requestFields,
  rst,
  settings,
  types,
  uint32,
  windowUpdate,
  type RawFrame,
} from "../../../../test/support/h2-frames.ts";
import { h2Error } from "./codes.ts";
import { defaultH2Limits } from "./limits.ts";

const request = block(requestFields("/p.S/M"));
const answer = block([[":status", "200"]]);
const trailers = block([["grpc-status", "0"]]);
const noPrefix = new Uint8Array(0);
const ping = frame(types.ping, 0, 0, Buffer.alloc(8));

function goaway(frames: readonly RawFrame[]): { last: number; code: number } | undefined {
  const found = frames.find((f) => f.type === types.goaway);
  return found && { last: found.payload.readUInt32BE(0), code: found.payload.readUInt32BE(4) };
}

function increments(frames: readonly RawFrame[], streamId: number): number {
  return frames
    .filter((f) => f.type === types.windowUpdate && f.streamId === streamId)
    .reduce((sum, f) => sum + f.payload.readUInt32BE(0), 0);
}

describe("floods end the connection with ENHANCE_YOUR_CALM and a reason", () => {
  const { floods } = defaultH2Limits;
  const open = headers(1, request);
  test.each([
    ["ping_flood", [], ping, floods.ping_flood.burst],
    ["settings_flood", [], settings(), floods.settings_flood.burst - 1],
    [
      "priority_flood",
      [],
      frame(types.priority, 0, 3, [0, 0, 0, 0, 1]),
      floods.priority_flood.burst,
    ],
    ["empty_data_flood", [open], data(1, []), floods.empty_data_flood.burst],
    [
      "empty_data_flood",
      [open],
      frame(types.data, flags.padded, 1, [0]),
      floods.empty_data_flood.burst,
    ],
    ["window_update_flood", [open], windowUpdate(1, 1), floods.window_update_flood.burst],
    ["unknown_frame_flood", [], frame(0xbe, 0, 0), floods.unknown_frame_flood.burst],
  ] as const)("%s", (reason, before, one, burst) => {
    const bare = BareConnection.open();
    bare.receive(...before);
    bare.receive(...Array.from({ length: burst }, () => one));
    expect(bare.connection.end).toBeUndefined();
    bare.receive(one);
    expect(bare.connection.end).toBe(reason);
    expect(goaway(bare.frames())?.code).toBe(h2Error.enhanceYourCalm);
  });

  test("a flood's allowance comes back with time", () => {
    const bare = BareConnection.open();
    for (let second = 0; second < 30; second++) {
      bare.receive(...Array.from({ length: floods.ping_flood.perSecond }, () => ping));
      bare.pass(1_000);
    }
    expect(bare.connection.end).toBeUndefined();
  });

  test("rapid_reset: streams opened and cancelled at once", () => {
    const bare = BareConnection.open();
    let id = 1;
    while (bare.connection.end === undefined && id < 10_000) {
      bare.receive(headers(id, request), rst(id, h2Error.cancel));
      id += 2;
    }
    expect(bare.connection.end).toBe("rapid_reset");
    expect((id - 1) / 2).toBe(floods.rapid_reset.burst + 1);
    expect(bare.connection.streamCount).toBe(0);
  });

  test("rapid_reset: a client that cancels less than it lets end is left alone", () => {
    const bare = BareConnection.open();
    for (let id = 1; id < 20_000; id += 4) {
      bare.receive(headers(id, request), rst(id, h2Error.cancel));
      bare.receive(headers(id + 2, request, flags.end));
      bare.connection.sendTrailers(bare.stream(id + 2), trailers);
      bare.frames();
    }
    expect(bare.connection.end).toBeUndefined();
  });

  test("rapid_reset: a client that resets after the answer or the end, as Envoy does, is left alone", () => {
    const bare = BareConnection.open();
    for (let id = 1; id < 20_000; id += 4) {
      bare.receive(headers(id, request));
      bare.connection.sendHeaders(bare.stream(id), answer);
      bare.receive(rst(id, h2Error.none));
      bare.receive(headers(id + 2, request, flags.end));
      bare.connection.sendTrailers(bare.stream(id + 2), trailers);
      bare.receive(rst(id + 2, h2Error.none));
      bare.frames();
    }
    expect(bare.connection.end).toBeUndefined();
  });

  test("rapid_reset: resets of a stream that is over, again and again", () => {
    const bare = BareConnection.open();
    bare.receive(headers(1, request), ...Array.from({ length: 1_001 }, () => rst(1, 8)));
    expect(bare.connection.end).toBe("rapid_reset");
  });

  test("stream_errors: streams that the client makes the server reset", () => {
    const bare = BareConnection.open();
    let id = 1;
    while (bare.connection.end === undefined && id < 10_000) {
      bare.receive(headers(id, request), windowUpdate(id, 0));
      id += 2;
    }
    expect(bare.connection.end).toBe("stream_errors");
    expect((id - 1) / 2).toBe(floods.stream_errors.burst + 1);
  });

  test("stream_errors: requests above the concurrency limit count", () => {
    const bare = BareConnection.open({ concurrentStreamsMax: 1 });
    for (let id = 1; bare.connection.end === undefined && id < 10_000; id += 2) {
      bare.receive(headers(id, request));
    }
    expect(bare.connection.end).toBe("stream_errors");
    expect(bare.seen.size).toBe(1);
  });

  test("continuation_flood: a header block in too many frames", () => {
    const bare = BareConnection.open();
    bare.receive(frame(types.headers, 0, 1, request));
    for (let i = 0; i < defaultH2Limits.continuationsMax; i++) {
      bare.receive(frame(types.continuation, 0, 1));
      expect(bare.connection.end).toBeUndefined();
    }
    bare.receive(frame(types.continuation, 0, 1));
    expect(bare.connection.end).toBe("continuation_flood");
  });

  test("header_block_too_large: a header block of too many bytes", () => {
    const bare = BareConnection.open();
    bare.receive(frame(types.headers, 0, 1, Buffer.alloc(16_384)));
    for (let i = 0; i < 3; i++) bare.receive(frame(types.continuation, 0, 1, Buffer.alloc(16_384)));
    expect(bare.connection.end).toBeUndefined();
    bare.receive(frame(types.continuation, 0, 1, [0]));
    expect(bare.connection.end).toBe("header_block_too_large");
  });
});

describe("header lists", () => {
  test("above the limits are told to the listener, and later blocks still decode", () => {
    const bare = BareConnection.open({ headerFieldsMax: 10 });
    // Indexes a field, then refers to it a thousand times: one octet each.
    const indexed = Buffer.concat([
      Buffer.from([0x40, 1]),
      Buffer.from("a"),
      Buffer.from([1]),
      Buffer.from("b"),
    ]);
    bare.receive(headers(1, Buffer.concat([request, indexed, Buffer.alloc(1_000, 0xbe)])));
    expect(bare.stream(1).headers).toMatchObject({ isOverLimit: true, count: 1_007 });
    expect(bare.stream(1).headers.fields).toHaveLength(10);
    bare.receive(headers(3, Buffer.concat([request, Buffer.from([0xbe])])));
    expect(bare.stream(3).headers.get("a")).toBe("b");
  });
});

describe("deadlines", () => {
  test("a client without preface is closed", () => {
    const bare = new BareConnection();
    bare.receive(preface.subarray(0, 20));
    bare.pass(defaultH2Limits.prefaceMsMax);
    expect(bare.connection.end).toBeUndefined();
    bare.pass(100);
    expect(bare.connection.end).toBe("preface_timeout");
  });

  test("a client that does not acknowledge SETTINGS is closed", () => {
    const bare = new BareConnection();
    bare.receive(preface, settings(), headers(1, request));
    bare.pass(defaultH2Limits.settingsMsMax);
    expect(bare.connection.end).toBeUndefined();
    bare.pass(100);
    expect(bare.connection.end).toBe("settings_timeout");
    expect(goaway(bare.frames())?.code).toBe(h2Error.settingsTimeout);
  });

  test("a header block that trickles in is closed", () => {
    const bare = BareConnection.open();
    const bytes = frame(types.headers, flags.endHeaders, 1, request);
    for (let i = 0; i < bytes.length - 1 && bare.connection.end === undefined; i++) {
      bare.receive(bytes.subarray(i, i + 1));
      bare.pass(100);
    }
    expect(bare.connection.end).toBe("header_block_timeout");
  });

  test("a header block that waits for CONTINUATION is closed", () => {
    const bare = BareConnection.open();
    bare.receive(frame(types.headers, 0, 1, request));
    bare.pass(defaultH2Limits.headerBlockMsMax + 100);
    expect(bare.connection.end).toBe("header_block_timeout");
  });

  test("a client that is not being read has all the time it needs", () => {
    const bare = BareConnection.open();
    bare.receive(frame(types.headers, 0, 1, request));
    for (let i = 0; i < 1_000; i++) {
      bare.now += 100;
      bare.connection.tick(bare.now, true);
    }
    expect(bare.connection.end).toBeUndefined();
    bare.pass(defaultH2Limits.headerBlockMsMax + 100);
    expect(bare.connection.end).toBe("header_block_timeout");
  });

  test("a silent client is asked for a sign of life, and closed without one", () => {
    const bare = BareConnection.open();
    bare.receive(headers(1, request));
    bare.pass(defaultH2Limits.keepaliveMs + 100);
    const asked = bare.frames().find((f) => f.type === types.ping);
    expect(asked?.flags).toBe(0);
    bare.receive(frame(types.ping, flags.ack, 0, asked!.payload));
    bare.pass(defaultH2Limits.keepaliveMs + defaultH2Limits.keepaliveTimeoutMs);
    expect(bare.connection.end).toBeUndefined();
    bare.pass(300);
    expect(bare.connection.end).toBe("keepalive_timeout");
    expect(bare.seen.get(1)?.closed).toBe("connection_lost");
  });

  test("an idle connection is closed when that is set", () => {
    const bare = BareConnection.open({ idleMsMax: 2_000 });
    bare.receive(headers(1, request, flags.end));
    bare.pass(5_000);
    expect(bare.connection.end).toBeUndefined();
    bare.connection.sendTrailers(bare.stream(1), trailers);
    bare.pass(2_300);
    expect(bare.connection.end).toBe("idle");
    expect(goaway(bare.frames())).toEqual({ last: 1, code: h2Error.none });
  });

  test("a stream whose answer the client does not take is reset", () => {
    const bare = BareConnection.open();
    bare.receive(settings([4, 10]), headers(1, request));
    bare.connection.sendHeaders(bare.stream(1), answer);
    bare.connection.sendMessage(bare.stream(1), noPrefix, Buffer.alloc(100));
    bare.receive(windowUpdate(1, 1));
    for (let i = 0; i < 4; i++) {
      bare.pass(defaultH2Limits.sendStallMsMax / 4);
      bare.receive(ping);
    }
    expect(bare.faults).toEqual([]);
    bare.pass(300);
    expect(bare.faults).toEqual(["send_stalled"]);
    expect(bare.seen.get(1)?.closed).toBe("reset");
    expect(bare.pool.outBytes).toBe(0);
  });
});

describe("windows of the client's DATA", () => {
  test("are given back by halves, padding and all", () => {
    const bare = BareConnection.open({
      streamWindowBytes: 100_000,
      connectionWindowBytes: 200_000,
    });
    bare.receive(headers(1, request));
    const padded = frame(
      types.data,
      flags.padded,
      1,
      Buffer.concat([Buffer.from([99]), Buffer.alloc(10_000)]),
    );
    for (let i = 0; i < 100; i++) bare.receive(padded);
    const frames = bare.frames();
    expect(increments(frames, 1)).toBe(100 * 10_001);
    expect(increments(frames, 0)).toBe(100 * 10_001);
    expect(Buffer.concat(bare.seen.get(1)!.body)).toHaveLength(100 * (10_000 - 99));
  });

  test("are given back to the connection for DATA of streams that are over", () => {
    const bare = BareConnection.open({ connectionWindowBytes: 200_000 });
    bare.receive(headers(1, request));
    bare.connection.sendTrailers(bare.stream(1), trailers);
    const reset = bare.frames().find((f) => f.type === types.rst);
    expect(reset?.payload.readUInt32BE(0)).toBe(h2Error.none);
    for (let i = 0; i < 100; i++) bare.receive(data(1, Buffer.alloc(10_000)));
    expect(bare.connection.end).toBeUndefined();
    expect(increments(bare.frames(), 0)).toBe(1_000_000);
    expect(bare.seen.get(1)?.body).toEqual([]);
  });

  test("exceeded on a stream reset it and nothing else", () => {
    const bare = BareConnection.open({ streamWindowBytes: 10, connectionWindowBytes: 65_535 });
    bare.receive(headers(1, request), data(1, Buffer.alloc(11)));
    expect(bare.faults).toEqual(["stream_flow_control"]);
    expect(bare.connection.end).toBeUndefined();
  });

  test("start at the protocol's default until the client has acknowledged a smaller one", () => {
    const bare = new BareConnection({ streamWindowBytes: 10 });
    bare.receive(preface, settings(), headers(1, request), data(1, Buffer.alloc(1_000)));
    expect(bare.faults).toEqual([]);
    bare.receive(
      frame(types.settings, flags.ack, 0),
      headers(3, request),
      data(3, Buffer.alloc(11)),
    );
    expect(bare.faults).toEqual(["stream_flow_control"]);
  });
});

describe("answers within the client's windows", () => {
  test("wait for the connection's window, streams taking turns", () => {
    const bare = BareConnection.open();
    bare.receive(settings([4, 1 << 20]), headers(1, request), headers(3, request));
    for (const id of [1, 3]) {
      bare.connection.sendHeaders(bare.stream(id), answer);
      bare.connection.sendMessage(bare.stream(id), noPrefix, Buffer.alloc(100_000, id));
      bare.connection.sendTrailers(bare.stream(id), trailers);
    }
    const first = bare.frames().filter((f) => f.type === types.data);
    expect(first.reduce((sum, f) => sum + f.payload.length, 0)).toBe(65_535);
    bare.receive(windowUpdate(0, 4 * 16_384));
    expect(bare.frames().map((f) => f.streamId)).toEqual([1, 3, 1, 3]);
    bare.receive(windowUpdate(0, 1 << 20));
    const rest = bare.frames();
    expect(rest.filter((f) => f.type === types.headers && f.flags === 5)).toHaveLength(2);
    expect([...bare.seen.values()].map((s) => s.closed)).toEqual(["ended", "ended"]);
    expect(bare.pool.outBytes).toBe(0);
  });

  test("come out whole and in order whatever the windows", () => {
    const bare = BareConnection.open();
    bare.receive(settings([4, 7]), headers(1, request));
    const stream = bare.stream(1);
    bare.connection.sendHeaders(stream, answer);
    const sent: Buffer[] = [];
    const got: Buffer[] = [];
    for (let i = 0; i < 200; i++) {
      const message = Buffer.alloc(i % 23, i);
      sent.push(message);
      bare.connection.sendMessage(stream, noPrefix, message);
      bare.receive(windowUpdate(1, 1 + ((i * 7) % 11)));
      got.push(
        ...bare
          .frames()
          .filter((f) => f.type === types.data)
          .map((f) => f.payload),
      );
    }
    bare.receive(windowUpdate(1, 100_000));
    got.push(
      ...bare
        .frames()
        .filter((f) => f.type === types.data)
        .map((f) => f.payload),
    );
    expect(Buffer.concat(got).equals(Buffer.concat(sent))).toBe(true);
    expect(stream.queuedBytes).toBe(0);
    expect(bare.seen.get(1)?.drains).toBeGreaterThan(0);
  });

  test("above the queue's bound reset the stream", () => {
    const bare = BareConnection.open({ streamQueueBytesMax: 1_000 });
    bare.receive(settings([4, 0]), headers(1, request));
    bare.connection.sendHeaders(bare.stream(1), answer);
    bare.connection.sendMessage(bare.stream(1), noPrefix, Buffer.alloc(1_000));
    expect(bare.stream(1).queuedBytes).toBe(1_000);
    bare.connection.sendMessage(bare.stream(1), noPrefix, Buffer.alloc(1));
    expect(bare.faults).toEqual(["stream_queue_full"]);
    expect(bare.seen.get(1)?.closed).toBe("reset");
    expect(bare.pool.outBytes).toBe(0);
  });

  test("above the server's memory reset the stream", () => {
    const bare = BareConnection.open({}, 8_192);
    bare.receive(settings([4, 0]), headers(1, request));
    bare.connection.sendHeaders(bare.stream(1), answer);
    bare.connection.sendMessage(bare.stream(1), noPrefix, Buffer.alloc(10_000));
    expect(bare.faults).toEqual(["memory_full"]);
    expect(bare.pool.outBytes).toBe(0);
  });

  test("wait when the socket takes no more, and go on after", () => {
    const bare = BareConnection.open({ outputBytesHigh: 50_000 });
    bare.receive(settings([4, 1 << 24]), windowUpdate(0, 1 << 24), headers(1, request));
    bare.connection.sendHeaders(bare.stream(1), answer);
    for (let i = 0; i < 20; i++) {
      bare.connection.sendMessage(bare.stream(1), noPrefix, Buffer.alloc(10_000));
    }
    expect(bare.connection.output.length).toBeLessThan(70_000);
    let bytes = 0;
    for (let i = 0; i < 10; i++) {
      for (const f of bare.frames()) if (f.type === types.data) bytes += f.payload.length;
      bare.connection.pump(bare.now);
    }
    expect(bytes).toBe(200_000);
  });
});

describe("the limit of streams", () => {
  test("holds from the acknowledgement on, so that a first burst is not refused", () => {
    const bare = new BareConnection({ concurrentStreamsMax: 2 });
    bare.receive(preface, settings(), ...[1, 3, 5, 7].map((id) => headers(id, request)));
    expect(bare.connection.streamCount).toBe(4);
    bare.receive(frame(types.settings, flags.ack, 0), headers(9, request));
    expect(bare.faults).toEqual(["concurrent_streams"]);
    for (const id of [1, 3, 5]) bare.connection.sendTrailers(bare.stream(id), trailers);
    bare.receive(headers(11, request));
    expect(bare.connection.streamCount).toBe(2);
  });
});

describe("the end of a connection", () => {
  test("drain: GOAWAY for all, then for the last stream, then the end after it", () => {
    const bare = BareConnection.open();
    bare.receive(headers(1, request));
    bare.connection.drain(bare.now);
    const announced = bare.frames();
    expect(goaway(announced)).toEqual({ last: 0x7fff_ffff, code: h2Error.none });
    const probe = announced.find((f) => f.type === types.ping);
    bare.receive(headers(3, request), frame(types.ping, flags.ack, 0, probe!.payload));
    expect(goaway(bare.frames())).toEqual({ last: 3, code: h2Error.none });
    bare.receive(headers(5, request), data(5, Buffer.alloc(100)));
    expect([...bare.seen.keys()]).toEqual([1, 3]);
    bare.connection.sendTrailers(bare.stream(1), trailers);
    expect(bare.connection.end).toBeUndefined();
    bare.connection.sendTrailers(bare.stream(3), trailers);
    expect(bare.connection.end).toBe("drained");
  });

  test("drain does not wait for a client that does not answer PING", () => {
    const bare = BareConnection.open();
    bare.connection.drain(bare.now);
    bare.pass(1_200);
    expect(bare.connection.end).toBe("drained");
  });

  test("a client's GOAWAY lets open streams end", () => {
    const bare = BareConnection.open();
    bare.receive(headers(1, request, flags.end));
    bare.receive(frame(types.goaway, 0, 0, Buffer.concat([uint32(0), uint32(0)])));
    expect(bare.connection.end).toBeUndefined();
    bare.connection.sendTrailers(bare.stream(1), trailers);
    expect(bare.connection.end).toBe("client_left");
  });

  test("tells each stream once, even when one ends the others on hearing of it", () => {
    const bare = BareConnection.open();
    bare.receive(headers(1, request), headers(3, request), headers(5, request));
    const told: number[] = [];
    for (const { stream } of bare.seen.values()) {
      stream.listener = {
        onData: () => undefined,
        onEnd: () => undefined,
        onDrain: () => undefined,
        onClose: () => {
          told.push(stream.id);
          for (const other of bare.seen.values()) {
            bare.connection.sendTrailers(other.stream, trailers);
          }
        },
      };
    }
    bare.connection.socketEnded("socket_closed");
    expect(told).toEqual([1, 3, 5]);
  });

  test("an error tells every stream, and nothing is read after it", () => {
    const bare = BareConnection.open();
    bare.receive(headers(1, request), headers(3, request), data(0, [1]), headers(5, request));
    expect([...bare.seen.values()].map((s) => s.closed)).toEqual([
      "connection_lost",
      "connection_lost",
    ]);
    expect(goaway(bare.frames())).toEqual({ last: 3, code: h2Error.protocol });
    bare.receive(ping);
    bare.pass(1_000);
    expect(bare.frames()).toEqual([]);
  });
});
