# Pairwise mutual information, for Chow-Liu trees: a backend counts, and what follows from its counts is the same arithmetic for all.

"""
    MutualInformationJob(X; categories, pseudocount = 0.1, mask = nothing, columns = nothing, backend = CPU())

Pairwise mutual information of the rows of `X`, integers 0..categories-1, `(variables, samples)`. `advance!` works through
the variables; the matrix, `(V, V)` in nats, is in `.mi` when it is done: the same on all backends, to the last bit.

With pseudocount a: P_ij = (N_ij + a / C^2) / (N + a) and P_i = (N_i + a / C) / (N + a). Where `mask`, Bool of X's size, is true, a value
is missing: then all counts of a pair are of the samples in which both are seen (pairwise complete). Memory is one column-wise copy of X,
for which `columns`, UInt32 `(samples, variables)`, may be lent, and what the backend counts in: tables of C^2 cells. Where C > $(2^12), lists of
pairs are sorted in their place, on the CPU, whatever the backend.
"""
mutable struct MutualInformationJob
    columns::Matrix{UInt32}   # (samples, variables); `MISSING_VALUE` where one is not seen
    categories::Int
    pseudocount::Float64
    mi::Matrix{Float64}
    entropy::Vector{Float64}  # empty where values are missing: what a variable is worth then depends on the other
    joint::Terms              # of a pair's cells; where values are missing, not yet divided by their number
    marginal::Terms           # of one variable's
    counter::PairCounter
    next::Int
    share::Share              # of the variables whose pairs with later ones are done here: the others stay 0 in `mi`
end

const LARGEST_TABLE = 2^24  # cells of a pair's table: 64 MB
const MISSING_VALUE = typemax(UInt32)

function MutualInformationJob(X::AbstractMatrix{<:Integer}; categories::Integer, pseudocount::Real=0.1,
                              mask::Union{Nothing,Matrix{Bool}}=nothing, columns::Union{Nothing,Matrix{UInt32}}=nothing,
                              backend::Backend=CPU())
    V, N = size(X)
    N >= 1 || throw(ArgumentError("X has no samples"))
    columns === nothing || size(columns) == (N, V) ||
        throw(ArgumentError("columns: found $(reverse(size(columns))), wanted $((V, N))"))
    incomplete = mask !== nothing
    incomplete && size(mask) != (V, N) && throw(ArgumentError("mask: found $(reverse(size(mask))), wanted X's $((N, V))"))
    1 <= categories <= typemax(Int32) || throw(ArgumentError("num_cats = $categories: want 1..$(typemax(Int32))"))
    check_pseudocount(pseudocount)
    fits_table(categories) || (backend = CPU())
    threads = Threads.nthreads()
    check_memory("X, (samples, variables) = ($N, $V), num_cats = $categories", "mutual information",
                 (columns === nothing) * 4.0 * N * V + 8.0 * V * V + threads * 8.0 * categories + 16.0 * N +
                 counter_bytes(backend, N, Int(categories), incomplete))
    check_data(X, fill(Int32(categories), V), mask)
    copied = columns === nothing ? Matrix{UInt32}(undef, N, V) : columns
    entropy, terms = zeros(incomplete ? 0 : V), incomplete ? undivided_terms : shares_terms
    marginal, counts = terms(N, categories, pseudocount), [zeros(Int, categories) for _ in 1:threads]
    in_pieces(1:V; steps=10 * N, threads=threads) do variables
        Threads.@threads for t in 1:threads
            for i in first(variables) + t - 1:threads:last(variables)
                copy_column!(copied, X, mask, i)
                incomplete || (entropy[i] = own_entropy(view(copied, :, i), counts[t], marginal))
            end
        end
    end
    return MutualInformationJob(copied, categories, pseudocount, zeros(V, V), entropy, terms(N, Float64(categories)^2, pseudocount), marginal,
                                pair_counter(backend, N, V, Int(categories), incomplete), 1, ALL)
end

"Whether the pairs of two variables are counted in a table, and not sorted."
fits_table(categories::Integer) = Float64(categories)^2 <= LARGEST_TABLE

"Copies variable `i` of X to its column."
function copy_column!(columns, X, mask, i)
    @inbounds for n in axes(X, 2)
        columns[n, i] = hidden(mask, i, n) ? MISSING_VALUE : X[i, n] % UInt32
    end
end

"The entropy of a complete column. `counts` are zeros before and after."
function own_entropy(column, counts, terms)
    @inbounds for value in column
        counts[value + 1] += 1
    end
    entropy = -sum_of(terms, (count(>(0), counts), sum(count -> count > 0 ? terms.fixed[count + 1] : 0, counts)))
    fill!(counts, 0)
    return entropy
end

"Advances for about `seconds`; returns `(done, variables finished, variables)`."
function advance!(job::MutualInformationJob, seconds::Real=Inf)
    V = size(job.columns, 2)
    started = time()
    while job.next <= V
        count_pairs!(job.counter, job)
        time() - started > seconds && break
    end
    return job.next > V, job.next - 1, V
end

"Runs a job to its end and returns the mutual information."
function finish!(job::MutualInformationJob)
    advance!(job)
    return job.mi
end

"Whether the pairs of variable `i` with later ones are done here."
is_own(job::MutualInformationJob, i::Int) = i % job.share.of == job.share.number % job.share.of

"Notes the mutual information of a complete pair, from its cells: how many hold samples, and the sum of their terms."
function note_pair!(job::MutualInformationJob, i::Int, j::Int, joint::NTuple{2,Int})
    note!(job, i, j, job.entropy[i] + job.entropy[j] + sum_of(job.joint, joint))
end

"The same where values are missing, over the `seen` samples that have both, from the cells of the pair and of each; 0 where there are none."
function note_pair!(job::MutualInformationJob, i::Int, j::Int, joint::NTuple{2,Int}, of_i::NTuple{2,Int}, of_j::NTuple{2,Int}, seen::Int)
    weight = seen + job.pseudocount
    undivided = sum_of(job.joint, joint) - sum_of(job.marginal, of_i) - sum_of(job.marginal, of_j)
    note!(job, i, j, weight > 0 ? undivided / weight + log(weight) : 0.0)
end

note!(job, i, j, mi) = (job.mi[i, j] = job.mi[j, i] = max(mi, 0.0); nothing)
