import java.math.BigInteger;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Integers, floats, virtual and interface calls, strings, exceptions, threads: long enough for both compilers. */
public final class Loop {
    interface Shape { double area(); }
    record Square(double side) implements Shape { public double area() { return side * side; } }
    record Circle(double radius) implements Shape { public double area() { return radius * radius * 3.25; } }
    record Frame(double a, double b) implements Shape { public double area() { return 2 * (a + b); } }

    static int sieve(int n) {
        boolean[] composite = new boolean[n + 1];
        int found = 0;
        for (int i = 2; i <= n; i++) {
            if (composite[i]) continue;
            found++;
            for (long k = 2L * i; k <= n; k += i) composite[(int) k] = true;
        }
        return found;
    }

    static double areas(int turns) {
        List<Shape> shapes = new ArrayList<>();
        for (int i = 0; i < 999; i++)
            shapes.add(i % 3 == 0 ? new Square(i) : i % 3 == 1 ? new Circle(i) : new Frame(i, i * 0.5));
        double sum = 0;
        for (int turn = 0; turn < turns; turn++)
            for (Shape shape : shapes) sum += shape.area() % 11;
        return sum;
    }

    static int hash(int n) {
        int h = 17;
        for (int i = 0; i < n; i++) h = Integer.rotateLeft(h * 31 + i, 5) ^ (h >>> 3);
        return h;
    }

    static String words(int n) {
        Map<String, Integer> count = new HashMap<>();
        for (int i = 0; i < n; i++) count.merge("w" + (i * 7919 % 1009), 1, Integer::sum);
        return count.size() + "/" + count.get("w7");
    }

    static int thrown(int n) {
        int caught = 0;
        Object[] things = {"a", null, 3};
        for (int i = 0; i < n; i++) {
            try {
                caught += things[i % 4].hashCode() & 1; // null pointers and an index out of range, found by faults
            } catch (NullPointerException | ArrayIndexOutOfBoundsException error) {
                caught += 2;
            }
        }
        return caught;
    }

    public static void main(String[] arguments) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(4);
        List<Future<Integer>> parts = new ArrayList<>();
        for (int i = 0; i < 4; i++) {
            int n = 2_000_000 + i;
            parts.add(threads.submit(() -> hash(n)));
        }
        StringBuilder line = new StringBuilder();
        line.append(sieve(1_000_000)).append(' ').append(areas(2000)).append(' ').append(words(200_000));
        line.append(' ').append(thrown(200_000)).append(' ').append(BigInteger.TWO.pow(4423).subtract(BigInteger.ONE).bitCount());
        for (Future<Integer> part : parts) line.append(' ').append(part.get());
        threads.shutdown();
        System.out.println(line);
    }
}
