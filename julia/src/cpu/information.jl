# Counts of pairs on the CPU: a table for each thread, in which only the cells that samples are in are visited.

"Each thread's table, and where values are missing, the values of a pair in the samples that have both."
struct TableCounter <: PairCounter
    tables::Vector{Vector{UInt32}}
    seen::Vector{NTuple{2,Vector{UInt32}}}
end

counter_bytes(::CPU, N::Int, categories::Int, incomplete::Bool) =
    Threads.nthreads() * ((fits_table(categories) ? 4.0 * categories^2 : 8.0 * N) + 8.0 * incomplete * N)

pair_counter(::CPU, N::Int, V::Int, categories::Int, incomplete::Bool) =
    TableCounter([zeros(UInt32, fits_table(categories) ? categories^2 : 0) for _ in 1:Threads.nthreads()],
                 [(zeros(UInt32, incomplete ? N : 0), zeros(UInt32, incomplete ? N : 0)) for _ in 1:Threads.nthreads()])

"Time is linear in the samples for each pair, whatever the number of categories."
function count_pairs!(counter::TableCounter, job::MutualInformationJob)
    i, threads = job.next, length(counter.tables)
    if is_own(job, i)
        in_pieces(i + 1:size(job.columns, 2); steps=10 * size(job.columns, 1), threads=threads) do others
            # Static shares: pair (i, j) costs the same for every j.
            Threads.@threads for t in 1:threads
                for j in first(others) + t - 1:threads:last(others)
                    count_pair!(counter, job, i, j, t)
                end
            end
        end
    end
    job.next += 1
    return nothing
end

function count_pair!(counter::TableCounter, job, i, j, t)
    table, C, joint, marginal = counter.tables[t], job.categories, job.joint.fixed, job.marginal.fixed
    if isempty(job.entropy)
        x, y = complete_pair!(counter.seen[t]..., job.columns, i, j)
        note_pair!(job, i, j, cell_sum(x, y, C, table, joint), cell_sum(x, x, C, table, marginal), cell_sum(y, y, C, table, marginal), length(x))
    else
        note_pair!(job, i, j, cell_sum(view(job.columns, :, i), view(job.columns, :, j), C, table, joint))
    end
end

"The values of variables `i` and `j` in the samples that have both."
function complete_pair!(x, y, columns, i, j)
    count = 0
    @inbounds for n in axes(columns, 1)
        a, b = columns[n, i], columns[n, j]
        (a == MISSING_VALUE) | (b == MISSING_VALUE) && continue
        count += 1
        x[count], y[count] = a, b
    end
    return view(x, 1:count), view(y, 1:count)
end

"How many cells hold samples, and the sum of their terms. The values of one variable, given twice, are the table's diagonal."
cell_sum(x, y, C, table, terms) = fits_table(C) ? counted(x, y, C, table, terms) : sorted(x, y, C, terms)

function counted(x, y, C, table, terms)
    @inbounds for n in eachindex(x)
        table[x[n] * C + y[n] + 1] += UInt32(1)
    end
    occupied, total = 0, 0
    @inbounds for n in eachindex(x)  # a second pass over the samples visits occupied cells only, and clears them
        cell = x[n] * C + y[n] + 1
        count = table[cell]
        if count > 0
            occupied += 1
            total += terms[count + 1]
            table[cell] = 0
        end
    end
    return occupied, total
end

function sorted(x, y, C, terms)
    cells = sort!([UInt64(x[n]) * C + y[n] for n in eachindex(x)])
    occupied, total, run = 0, 0, 0
    for n in eachindex(cells)
        run += 1
        if n == length(cells) || cells[n + 1] != cells[n]
            occupied += 1
            total += terms[run + 1]
            run = 0
        end
    end
    return occupied, total
end
