import { Charges } from "./admission/charges.ts";
import { admissionDefaults } from "./admission/options.ts";
import { PoolGates } from "./admission/pool-gates.ts";
import { SessionHomes } from "./admission/session-homes.ts";
import { TurnTaking } from "./admission/turn-taking.ts";
import { roomDefaults } from "./admission/worker-rooms.ts";
import { DecisionLog } from "./decisions/decision-log.ts";
import { DecisionMaker } from "./decisions/decision-maker.ts";
import { KvIndex } from "./kv-index/kv-index.ts";
import { CacheObservers } from "./load/cache-observers.ts";
import { EngineSpeeds } from "./load/engine-speeds.ts";
import { LoadBook } from "./load/load-book.ts";
import { RequestEnds } from "./load/request-ends.ts";
import { Reservations } from "./load/reservations.ts";
import { Members } from "./membership/members.ts";
import { Membership } from "./membership/membership.ts";
import { PeerReservations } from "./peers/peer-reservations.ts";
import { preferences } from "./placement/estimate.ts";
import { pairDefaults, PairPlacer } from "./placement/pairs/pair-placer.ts";
import { PairTries } from "./placement/pairs/pair-tries.ts";
import { PlacementTable } from "./placement/placement-table.ts";
import { PoolPolicies } from "./placement/pool-policies.ts";
import { RequestPlacer } from "./placement/request-placer.ts";
import { RequestRanking } from "./placement/request-ranking.ts";
import { RowRanker } from "./placement/row-ranking.ts";
import { LegEnds } from "./relays/leg-ends.ts";
import { RelayRoster } from "./relays/relay-roster.ts";
import { StreamGuards } from "./relays/stream-guards.ts";
import { EffectQueue } from "./router-effects.ts";
import type { RouterCoreOptions } from "./router-options.ts";

/** A conversation that has been silent for so long has no worker of its own any more, ms. */
const sessionKeptMs = 600_000;
/** Relays at once. */
const relaysMax = 256;
/** Sets of workers that hold the same blocks, in the index. */
const setsMax = 1 << 18;

/** The parts of a router core that calls go to. */
export interface RouterParts {
  readonly effects: EffectQueue;
  readonly members: Members;
  readonly membership: Membership;
  readonly index: KvIndex;
  readonly table: PlacementTable;
  readonly book: LoadBook;
  readonly speeds: EngineSpeeds;
  readonly policies: PoolPolicies;
  readonly gates: PoolGates;
  readonly turns: TurnTaking;
  readonly placer: RequestPlacer;
  readonly pairs: PairPlacer;
  readonly ends: RequestEnds;
  readonly decisions: DecisionLog;
  readonly peers: PeerReservations;
  readonly relays: RelayRoster;
  readonly legEnds: LegEnds;
}

/** Makes the parts and ties them together. */
export function makeRouterParts(options: RouterCoreOptions): RouterParts {
  const { graceMs, membersMax, blocksMax, blockSizeTokens, decisionPrefix } = options;
  const { affinityMs = 0, sessionsMax = 65_536, fallbacksMax, outputTokensDefault } = options;
  const { admission = admissionDefaults, rooms = roomDefaults, reservationsMax } = options;
  const weights = preferences[options.preference ?? "balanced"];
  const endpointsMax = 1 + fallbacksMax;

  const effects = new EffectQueue();
  const members = new Members({ graceMs, membersMax, blockSizeTokens });
  const index = new KvIndex({ workersMax: membersMax, blocksMax, setsMax });
  const relays = new RelayRoster({ graceMs, relaysMax });
  const decisions = new DecisionLog({ decisionsMax: options.decisionsMax });
  const observers = new CacheObservers();
  const book = new LoadBook({
    reservationsMax,
    onLegClosed: (leg, now) => {
      pairs.legs.closed(leg, now);
    },
  });
  const table = new PlacementTable({ book });
  const speeds = new EngineSpeeds({ members, table });

  const seedPrefix = decisionPrefix;
  const policies = new PoolPolicies({ policy: options.policy, seedPrefix, weights });
  const ranker = new RowRanker({ table, index, blockSizeTokens, weights });
  const pairs = new PairPlacer(options.pairs ?? pairDefaults, {
    relays,
    table,
    ranker,
    book,
    weights,
    blockSizeTokens,
  });

  const gates: PoolGates = new PoolGates(
    { admission, rooms, self: decisionPrefix.replace(/\.[^.]*$/, "") },
    {
      members,
      book,
      table,
      port: {
        place: (pass, now) => turns.attempt(pass, now),
        estimate: (request, now) => placer.estimate(request, now),
      },
    },
  );
  const charges = new Charges(admission, { gates });
  const maker = new DecisionMaker({ prefix: decisionPrefix }, { log: decisions, policies, table });
  const reservations = new Reservations({
    book,
    speeds,
    observers,
    gates,
    pairs,
    relays,
    effects,
  });
  const homes = new SessionHomes({
    sessionsMax: affinityMs > 0 ? sessionsMax : 0,
    keptMs: sessionKeptMs,
  });
  const ranking = new RequestRanking(
    { blockSizeTokens, membersMax, outputTokensDefault, fallbacksMax, affinityMs },
    { members, index, table, ranker, policies, homes },
  );
  const tries = new PairTries({ relaysMax: endpointsMax }, { pairs, table, ranking, charges });
  const placer: RequestPlacer = new RequestPlacer(
    { endpointsMax },
    {
      ranking,
      tries,
      charges,
      maker,
      reservations,
      guards: new StreamGuards({ relays, members }),
      decisions,
      members,
      policies,
      homes,
    },
  );
  const turns: TurnTaking = new TurnTaking(admission, { gates, placer, maker });

  const ends = new RequestEnds(
    { blockSizeTokens },
    { book, decisions, pairs, observers, speeds, gates, policies, charges, effects },
  );
  const membership = new Membership(
    { blockSizeTokens, blocksMax },
    { members, index, book, table, pairs, speeds, observers, gates, policies, ends, effects },
  );
  const peers = new PeerReservations({ book, members, table, pairs, speeds, gates, ends });
  const legEnds = new LegEnds({
    pairs,
    decision: (id) => decisions.byId(id),
    close: (key, now) => {
      ends.closeLeg(key, now);
    },
    firstToken: (id) => {
      policies.firstToken(id);
    },
    cachedTold: (id, tokens) => {
      ends.cachedTold(id, tokens);
    },
    learnPrefill: (worker, sample) => {
      speeds.observePrefill(worker, sample);
    },
  });
  return {
    effects,
    members,
    membership,
    index,
    table,
    book,
    speeds,
    policies,
    gates,
    turns,
    placer,
    pairs,
    ends,
    decisions,
    peers,
    relays,
    legEnds,
  };
}
