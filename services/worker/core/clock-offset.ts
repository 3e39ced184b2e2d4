interface Reading {
  readonly roundTripUs: number;
  readonly offsetUs: number;
}

const readingsMax = 64;

/**
 * Offset between a router's wall clock and ours, from the times in acks. The reading with the shortest
 * round trip of the last 64 is believed, since waiting on the way is what makes a reading wrong.
 */
export class ClockOffset {
  #readings: Reading[] = [];

  /** Takes one ack; times in microseconds since 1970. Readings with a negative round trip are dropped. */
  observe(ack: {
    readonly sentUnixUs: number;
    readonly routerUnixUs: number;
    readonly receivedUnixUs: number;
  }): void {
    const roundTripUs = ack.receivedUnixUs - ack.sentUnixUs;
    if (roundTripUs < 0) return;
    const offsetUs = ack.routerUnixUs - (ack.sentUnixUs + roundTripUs / 2);
    this.#readings.push({ roundTripUs, offsetUs });
    if (this.#readings.length > readingsMax) this.#readings.shift();
  }

  /** How far the router's clock is ahead, µs, and half the round trip as its error; `undefined` before the first ack. */
  best(): { readonly offsetUs: number; readonly errorUs: number } | undefined {
    let best: Reading | undefined;
    for (const reading of this.#readings) {
      if (best === undefined || reading.roundTripUs < best.roundTripUs) best = reading;
    }
    if (best === undefined) return undefined;
    return { offsetUs: best.offsetUs, errorUs: best.roundTripUs / 2 };
  }
}
