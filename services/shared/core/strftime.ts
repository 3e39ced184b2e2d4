const months = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];
const weekdays = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/**
 * C `strftime` in the C locale for a wall time in UTC: the directives that chat templates use (%Y %y %m
 * %B %b %d %e %A %a %j %H %I %p %M %S %%, and `-` for "no padding" as in %-d). Others stay as written.
 */
export function strftimeUtc(format: string, wallUnixMs: number): string {
  const date = new Date(wallUnixMs);
  const hour12 = date.getUTCHours() % 12 === 0 ? 12 : date.getUTCHours() % 12;
  const month = months[date.getUTCMonth()] ?? "";
  const weekday = weekdays[date.getUTCDay()] ?? "";
  const yearStart = Date.UTC(date.getUTCFullYear(), 0, 1);
  const dayOfYear = Math.floor((wallUnixMs - yearStart) / 86_400_000) + 1;
  return format.replace(/%(-?)([YymBbdeAajHIpMS%])/g, (_, dash: string, directive: string) => {
    const pad = (value: number, width = 2, fill = "0"): string =>
      dash === "-" ? String(value) : String(value).padStart(width, fill);
    switch (directive) {
      case "Y":
        return String(date.getUTCFullYear());
      case "y":
        return pad(date.getUTCFullYear() % 100);
      case "m":
        return pad(date.getUTCMonth() + 1);
      case "B":
        return month;
      case "b":
        return month.slice(0, 3);
      case "d":
        return pad(date.getUTCDate());
      case "e":
        return pad(date.getUTCDate(), 2, " ");
      case "A":
        return weekday;
      case "a":
        return weekday.slice(0, 3);
      case "j":
        return pad(dayOfYear, 3);
      case "H":
        return pad(date.getUTCHours());
      case "I":
        return pad(hour12);
      case "p":
        return date.getUTCHours() < 12 ? "AM" : "PM";
      case "M":
        return pad(date.getUTCMinutes());
      case "S":
        return pad(date.getUTCSeconds());
      default:
        return "%";
    }
  });
}
