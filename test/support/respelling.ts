const word = /[A-Za-z]{4,}/g;
/** A word that a text has more often than this stays as it is. */
const rareMax = 24;
const vowels = "aeiou";
const consonants = "bcdfghjklmnpqrstvwxyz";

/** How often each word of four letters or more has been met. */
export class WordCounts {
  readonly #counts = new Map<string, number>();

  /** Counts the words of a text. */
  add(text: string): void {
    const counts = this.#counts;
    for (const [found] of text.matchAll(word)) counts.set(found, (counts.get(found) ?? 0) + 1);
  }

  /** Whether a word is so frequent that every cache knows it. */
  isFrequent(found: string): boolean {
    return (this.#counts.get(found) ?? 0) > rareMax;
  }
}

/** Another letter of the same kind, `by` places further. */
function shifted(letter: string, by: number): string {
  const lower = letter.toLowerCase();
  const alphabet = vowels.includes(lower) ? vowels : consonants;
  const other = alphabet[(alphabet.indexOf(lower) + by) % alphabet.length] as string;
  return letter === lower ? other : other.toUpperCase();
}

/**
 * The text with every word that is not frequent spelled with other vowels and consonants, the same ones wherever it occurs,
 * others in each edition from 1 to 20. Frequent words, which make up most of any text, stay, and so do signs, numbers and
 * line ends: word lengths and how often words repeat are those of the text. The new words mean nothing, so that they have a
 * few tokens more.
 */
export function respelled(text: string, words: WordCounts, edition: number): string {
  return text.replace(word, (found) => {
    if (words.isFrequent(found)) return found;
    let spelled = "";
    for (const letter of found) spelled += shifted(letter, edition);
    return spelled;
  });
}
