# Sums of p log p over the cells of a table of counts, that come out the same in whatever order a backend adds them up.

"""
The terms of a table's cells, as integers: rounded once, they add up in any order. `fixed[n + 1]` is that of a cell which holds n
samples, n = 0..N, times `units`, a power of two. Cells without samples are not visited: each has `empty`.
"""
struct Terms
    fixed::Vector{Int64}
    units::Float64
    empty::Float64
    cells::Float64
end

"`most`: what the sum over cells with samples stays below."
function Terms(values::Vector{Float64}, most::Float64, cells::Real)
    units = ldexp(1.0, 61 - ceil(Int, log2(most)))  # a bit is left for what rounding adds
    return Terms(round.(Int64, values .* units), units, values[1], cells)
end

"The sum over all cells, of which so many hold samples, with such a sum of `fixed`."
sum_of(terms::Terms, (occupied, total)::NTuple{2,Int}) = total / terms.units + (terms.cells - occupied) * terms.empty

"p log p for p = (n + a / cells) / (N + a); an entropy of N samples is at most log N."
shares_terms(N, cells, a) = Terms(x_log_x((n + a / cells) / (N + a) for n in 0:N), log(N) + 1, cells)

"q log q for q = n + a / cells: over M samples, the sum of p log p is that of these over M + a, less log(M + a)."
undivided_terms(N, cells, a) = Terms(x_log_x(n + a / cells for n in 0:N), max((N + a) * log(N + a), 1.0), cells)

x_log_x(values) = [x > 0 ? x * log(x) : 0.0 for x in values]
