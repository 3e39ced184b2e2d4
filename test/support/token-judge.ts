/** How the tokens of a stream differ from those that they should be; all 0 when they do not. */
export interface TokenVerdict {
  /** Tokens that never came, though later ones, or the end, did. */
  readonly lost: number;
  /** Tokens that came again. */
  readonly doubled: number;
  /** Tokens that came after later ones. */
  readonly reordered: number;
  /** Tokens that the answer does not hold at all. */
  readonly foreign: number;
}

/**
 * Compares the ids of a stream with its answer. `complete`: the stream said that it was at its end, so that what is missing
 * there is lost as well. Ids that an answer holds more than once are taken for the next of them, which can change the kind
 * of a difference but not whether there is one.
 */
export function judgeTokens(
  expected: readonly number[],
  received: readonly number[],
  complete: boolean,
): TokenVerdict {
  const missing = new Set<number>();
  let next = 0;
  let doubled = 0;
  let reordered = 0;
  let foreign = 0;
  for (const id of received) {
    const ahead = expected.indexOf(id, next);
    if (ahead >= 0) {
      for (let index = next; index < ahead; index++) missing.add(index);
      next = ahead + 1;
      continue;
    }
    const late = [...missing].find((index) => expected[index] === id);
    if (late !== undefined) {
      missing.delete(late);
      reordered++;
    } else if (expected.includes(id)) doubled++;
    else foreign++;
  }
  const lost = missing.size + (complete ? expected.length - next : 0);
  return { lost, doubled, reordered, foreign };
}
