import java.math.BigDecimal;
import java.math.RoundingMode;
import java.time.LocalDate;
import java.time.YearMonth;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import java.util.stream.Collectors;

/** A double-entry ledger that refuses transactions which don't balance. */
public final class Ledger {

    public enum Side { DEBIT, CREDIT }

    public record Line(String account, Side side, BigDecimal amount) {
        public Line {
            Objects.requireNonNull(account, "account");
            if (amount.signum() <= 0) {
                throw new IllegalArgumentException("amount must be positive: " + amount);
            }
            amount = amount.setScale(2, RoundingMode.UNNECESSARY);
        }

        BigDecimal signed() {
            return side == Side.DEBIT ? amount : amount.negate();
        }
    }

    public record Transaction(LocalDate date, String memo, List<Line> lines) {
        public Transaction {
            lines = List.copyOf(lines);
            BigDecimal sum = lines.stream().map(Line::signed).reduce(BigDecimal.ZERO, BigDecimal::add);
            if (sum.signum() != 0) {
                throw new IllegalArgumentException("\"%s\" is off by %s".formatted(memo, sum.toPlainString()));
            }
        }
    }

    private final List<Transaction> journal = new ArrayList<>();

    public void post(Transaction t) {
        journal.add(t);
        journal.sort(Comparator.comparing(Transaction::date));
    }

    public BigDecimal balance(String account, LocalDate asOf) {
        return journal.stream()
                .takeWhile(t -> !t.date().isAfter(asOf))
                .flatMap(t -> t.lines().stream())
                .filter(l -> l.account().equals(account))
                .map(Line::signed)
                .reduce(BigDecimal.ZERO, BigDecimal::add);
    }

    public Map<YearMonth, BigDecimal> monthly(String prefix) {
        return journal.stream().collect(Collectors.groupingBy(
                t -> YearMonth.from(t.date()),
                TreeMap::new,
                Collectors.reducing(
                        BigDecimal.ZERO,
                        t -> t.lines().stream()
                                .filter(l -> l.account().startsWith(prefix))
                                .map(Line::signed)
                                .reduce(BigDecimal.ZERO, BigDecimal::add),
                        BigDecimal::add)));
    }

    public static void main(String[] args) {
        var ledger = new Ledger();
        ledger.post(new Transaction(LocalDate.of(2027, 5, 3), "Coffee beans, 10 kg", List.of(
                new Line("expenses:supplies", Side.DEBIT, new BigDecimal("184.50")),
                new Line("assets:bank", Side.CREDIT, new BigDecimal("184.50")))));
        ledger.post(new Transaction(LocalDate.of(2027, 4, 28), "Espresso, counter", List.of(
                new Line("assets:cash", Side.DEBIT, new BigDecimal("2.80")),
                new Line("income:drinks", Side.CREDIT, new BigDecimal("2.62")),
                new Line("liabilities:vat", Side.CREDIT, new BigDecimal("0.18")))));
        System.out.println(ledger.balance("assets:bank", LocalDate.of(2027, 12, 31)));
        ledger.monthly("expenses").forEach((m, v) -> System.out.printf("%s %10s%n", m, v));
    }
}
